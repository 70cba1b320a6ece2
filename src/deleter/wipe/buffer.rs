//! Memory for direct I/O, which must begin where the device can take it.

/// Enough for every device: a page.
const ALIGNMENT: usize = 4096;

/// A piece of memory that begins on a page.
#[derive(Debug)]
pub struct Buffer {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Buffer {
    /// So many zeros.
    pub fn zeros(length: usize) -> Self {
        let memory = vec![0; length + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Self { memory, start, length }
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }

    /// All of it, to be filled.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }

    /// The first so many bytes, or all when there are less.
    pub fn part(&self, most: u64) -> &[u8] {
        &self.bytes()[..self.limit(most)]
    }

    /// As [`Self::part`], to be filled.
    pub fn part_mut(&mut self, most: u64) -> &mut [u8] {
        let length = self.limit(most);
        &mut self.bytes_mut()[..length]
    }

    fn limit(&self, most: u64) -> usize {
        usize::try_from(most).map_or(self.length, |most| most.min(self.length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_on_a_page_and_has_the_length_that_was_asked_for() {
        for length in [512, 4096, 5000] {
            let mut buffer = Buffer::zeros(length);
            assert_eq!(buffer.bytes().as_ptr() as usize % ALIGNMENT, 0);
            assert_eq!(buffer.bytes_mut().len(), length);
            assert_eq!((buffer.part(100).len(), buffer.part(u64::MAX).len()), (100, length));
        }
    }
}
