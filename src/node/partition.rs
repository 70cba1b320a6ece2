//! The UUID of a partition: from the kernel, from udev, or from the table on its disk,
//! which no tenant of the partition can write.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use super::sysfs::{Block, Sysfs, number_in};
use crate::identity::DeviceNumber;

/// Sectors of 512 bytes, which sysfs counts in.
const SECTOR: u64 = 512;
/// A GPT entry is at least this long (UEFI specification, 5.3.3); 1 MiB of them is
/// more than any table has.
const ENTRY: usize = 128;
const MOST_ENTRIES: usize = 1 << 20;

/// Where a partition begins on its disk, in bytes, and its UUID in lower case, if it has one.
pub fn of(sysfs: &Sysfs, partition: &Block, number: DeviceNumber) -> (u64, Option<String>) {
    let start = partition.read_number("start").unwrap_or(0).saturating_mul(SECTOR);
    // Linux 6.9 has it in `uevent`, if it read the table itself.
    let events = partition.read("uevent").unwrap_or_default();
    let uuid = events
        .lines()
        .find_map(|line| line.strip_prefix("PARTUUID="))
        .map(str::to_owned)
        .or_else(|| sysfs.udev(number, "ID_PART_ENTRY_UUID"))
        .or_else(|| read_from_table(partition, start).ok().flatten());
    (start, uuid.map(|uuid| uuid.to_ascii_lowercase()))
}

fn read_from_table(partition: &Block, start: u64) -> io::Result<Option<String>> {
    let Some(disk) = partition.disk_of_partition() else { return Ok(None) };
    let (Some(number), Some(index)) = (disk.number(), partition.read_number("partition")) else { return Ok(None) };
    let block = disk.read_number("queue/logical_block_size").unwrap_or(SECTOR);
    let Some(device) = open_node(&disk, number)? else { return Ok(None) };
    uuid_in_table(|offset, length| read_at(&device, offset, length), block, start, index)
}

/// Opens the node of a device to read it; `None` when the node in `/dev` is another
/// device's. Opening the node of no device could create one, hence the look before.
pub fn open_node(device: &Block, number: DeviceNumber) -> io::Result<Option<OwnedFd>> {
    let node = format!("/dev/{}", device.name().replace('!', "/"));
    let place = rustix::fs::open(node, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let stat = rustix::fs::fstat(&place)?;
    if number_in(&stat) != Some(number) {
        return Ok(None);
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(Some(rustix::fs::open(format!("/proc/self/fd/{}", place.as_raw_fd()), flags, Mode::empty())?))
}

fn read_at(device: &OwnedFd, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match rustix::io::pread(device, &mut bytes[filled..], offset + filled as u64)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => filled += read,
        }
    }
    Ok(bytes)
}

/// Finds the partition that begins at byte `start` in a GPT; an MBR has only a
/// signature of the disk, to which the kernel adds the partition's number. `block` is
/// the disk's logical block size.
fn uuid_in_table(
    read: impl Fn(u64, usize) -> io::Result<Vec<u8>>,
    block: u64,
    start: u64,
    index: u64,
) -> io::Result<Option<String>> {
    let mbr = read(0, 512)?;
    if mbr[510..] != [0x55, 0xaa] {
        return Ok(None);
    }
    // A GPT is marked by an entry of type 0xee in the MBR.
    if !(0..4).any(|entry| mbr[446 + 16 * entry + 4] == 0xee) {
        let signature = u32_at(&mbr, 440);
        return Ok((signature != 0).then(|| format!("{signature:08x}-{index:02x}")));
    }
    let header = read(block, 512)?;
    if !header.starts_with(b"EFI PART") {
        return Ok(None);
    }
    let (count, size) = (u32_at(&header, 80) as usize, u32_at(&header, 84) as usize);
    let length = count.saturating_mul(size);
    let Some(table) = u64_at(&header, 72).checked_mul(block) else { return Ok(None) };
    if size < ENTRY || length == 0 || length > MOST_ENTRIES {
        return Ok(None);
    }
    // Whole blocks: the device may take no others.
    let entries = read(table, length.next_multiple_of(4096))?;
    let found = entries[..length].chunks_exact(size).find(|entry| {
        let used = entry[..16].iter().any(|byte| *byte != 0);
        used && u64_at(entry, 32).checked_mul(block) == Some(start)
    });
    Ok(found.map(|entry| guid(&entry[16..32])))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes are four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes are eight bytes"))
}

/// A GUID as text: its first three parts are little-endian (UEFI specification, appendix A).
fn guid(bytes: &[u8]) -> String {
    let hex = |range: &mut dyn Iterator<Item = &u8>| range.map(|byte| format!("{byte:02x}")).collect::<String>();
    format!(
        "{}-{}-{}-{}-{}",
        hex(&mut bytes[0..4].iter().rev()),
        hex(&mut bytes[4..6].iter().rev()),
        hex(&mut bytes[6..8].iter().rev()),
        hex(&mut bytes[8..10].iter()),
        hex(&mut bytes[10..16].iter())
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: [u8; 16] = [0x65, 0xc9, 0xc1, 0x18, 0x70, 0xc9, 0x43, 0xdc, 0x98, 0xf8, 1, 2, 3, 4, 5, 6];

    /// A disk with one entry in its GPT, at `first` in blocks.
    fn gpt(block: usize, first: u64) -> Vec<u8> {
        let mut disk = vec![0; 1 << 18];
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        disk[446 + 4] = 0xee;
        disk[block..block + 8].copy_from_slice(b"EFI PART");
        disk[block + 72] = 2;
        disk[block + 80] = 128;
        disk[block + 84] = 128;
        let entry = 2 * block + 3 * 128;
        disk[entry] = 1;
        disk[entry + 16..entry + 32].copy_from_slice(&UUID);
        disk[entry + 32..entry + 40].copy_from_slice(&first.to_le_bytes());
        disk
    }

    fn find(disk: &[u8], block: u64, start: u64) -> Option<String> {
        let read = |offset, length| {
            let from = usize::try_from(offset).expect("the disk is small");
            disk.get(from..from + length).map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
        };
        uuid_in_table(read, block, start, 5).ok().flatten()
    }

    #[test]
    fn a_partition_is_found_in_a_gpt_by_its_first_byte() {
        for block in [512, 4096] {
            let disk = gpt(block, 256);
            let block = block as u64;
            let expected = Some("18c1c965-c970-dc43-98f8-010203040506");
            assert_eq!(find(&disk, block, 256 * block).as_deref(), expected);
            assert_eq!(find(&disk, block, 257 * block), None);
        }
    }

    #[test]
    fn an_mbr_has_a_signature_only() {
        let mut disk = vec![0; 4096];
        assert_eq!(find(&disk, 512, 0), None);
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(find(&disk, 512, 0), None, "no signature");
        disk[440..444].copy_from_slice(&0x90ab_cdef_u32.to_le_bytes());
        assert_eq!(find(&disk, 512, 1 << 20).as_deref(), Some("90abcdef-05"));
    }

    #[test]
    fn a_table_that_makes_no_sense_has_no_uuid() {
        let mut huge = gpt(512, 256);
        huge[512 + 80..512 + 88].fill(0xff);
        let mut far = gpt(512, 256);
        far[512 + 72..512 + 80].fill(0xff);
        let mut small = gpt(512, 256);
        small[512 + 84] = 1;
        for disk in [huge, far, small] {
            assert_eq!(find(&disk, 512, 256 * 512), None);
        }
    }
}
