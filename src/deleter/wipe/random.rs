//! Random data, faster than disks: AES-128 in counter mode (the cipher of AES-GCM, whose
//! authentication is left aside) with a key from the kernel. Nobody can tell it from
//! noise, and no two passes are alike. `ring` is here for TLS anyway, and its assembler
//! code is fast in a build for size too, where Rust's generic ciphers are not.

use ring::aead::{AES_128_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

use crate::deleter::WipeError;

/// A stream without an end.
pub struct RandomStream {
    key: LessSafeKey,
    /// How many buffers were filled: the cipher needs another number for each.
    count: u64,
}

impl RandomStream {
    /// A new one, with a key that is kept nowhere.
    pub fn new() -> Result<Self, WipeError> {
        let mut key = [0; 16];
        SystemRandom::new()
            .fill(&mut key)
            .map_err(|_| WipeError::Refused("the kernel gives no random key for the overwrite".to_owned()))?;
        let key = UnboundKey::new(&AES_128_GCM, &key).expect("AES-128 takes a key of 16 bytes");
        Ok(Self { key: LessSafeKey::new(key), count: 0 })
    }

    /// Fills the buffer, of up to 64 GiB, with what comes next. It need not be zero
    /// before: what is in it is encrypted, and looks as random as anything else.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        let mut nonce = [0; NONCE_LEN];
        nonce[..8].copy_from_slice(&self.count.to_le_bytes());
        self.count += 1;
        // The tag would prove that nobody has changed the data: nobody will ask.
        let _tag = self
            .key
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), buffer)
            .expect("a buffer of less than 64 GiB can be encrypted");
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
