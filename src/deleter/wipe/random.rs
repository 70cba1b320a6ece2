//! Random data, faster than disks: AES-128 in counter mode with a key from the kernel.
//! Nobody can tell it from noise, and no two passes are alike.

use aes::Aes128;
use ctr::Ctr64LE;
use ctr::cipher::{KeyIvInit, StreamCipher};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::deleter::WipeError;

/// A stream without an end.
pub struct RandomStream(Ctr64LE<Aes128>);

impl RandomStream {
    /// A new one, with a key that is kept nowhere.
    pub fn new() -> Result<Self, WipeError> {
        let (mut key, mut start) = ([0_u8; 16], [0_u8; 16]);
        for part in [&mut key, &mut start] {
            // Up to 256 bytes the kernel gives all or nothing (getrandom(2)).
            getrandom(&mut *part, GetRandomFlags::empty())
                .map_err(|errno| WipeError::io("asking the kernel for a random key")(errno.into()))?;
        }
        Ok(Self(Ctr64LE::new(&key.into(), &start.into())))
    }

    /// Fills the buffer with what comes next.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        // The key stream is added to what is there, the last piece of it as a rule: that
        // is as random, and saves writing zeros first.
        self.0.apply_keystream(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_random_and_never_repeats() {
        let (mut first, mut second, mut other) = ([0_u8; 4096], [0_u8; 4096], [0_u8; 4096]);
        let mut stream = RandomStream::new().expect("the kernel gives a key");
        stream.fill(&mut first);
        stream.fill(&mut second);
        RandomStream::new().expect("the kernel gives a key").fill(&mut other);
        assert!(first != second && first != other && second != other);
        for block in [first, second, other] {
            let ones: u32 = block.iter().map(|byte| byte.count_ones()).sum();
            // 16,384 of 32,768 bits, with a standard deviation of 90.
            assert!((15_000..18_000).contains(&ones), "{ones}");
        }
    }
}
