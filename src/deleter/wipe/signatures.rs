//! Zeroes what tells a filesystem, a partition table, RAID, LVM, LUKS or Ceph, and
//! their spare copies: then nothing recognizes the device any more, and no repair tool
//! finds its way back by a copy. **The data between stays.**
//!
//! The head of the device says where ext and XFS keep their copies, so it goes last:
//! until then only the tail is marked, and a wipe that was interrupted can read the head
//! again. Both are done in seconds, so there is no cursor.

use std::collections::BTreeSet;
use std::ops::Range;

use super::buffer::Buffer;
use super::device::TRANSFER;
use super::mark::{self, MarkId};
use super::run::Run;
use crate::deleter::{Phase, WipeError};
use crate::method::Method;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Both ends up to here hold: MBR and GPT with its backup, LVM labels and metadata,
/// LUKS1 and both headers of LUKS2 (at most 4 MiB), mdraid 0.90 and 1.0 (at the end)
/// and 1.1 and 1.2, ZFS (two labels of 256 KiB at each end), DRBD, bcache, swap,
/// and the first superblocks of all filesystems that Linux knows.
const END: u64 = 16 * MIB;
/// Copies at the same place on every disk: what, and where.
const FIXED: [(&str, &[u64]); 3] = [
    // btrfs, Documentation/filesystems and `BTRFS_SUPER_INFO_OFFSET`.
    ("btrfs", &[64 * MIB, 256 * GIB, 1 << 50]),
    // Ceph BlueStore, `bdev_label_positions`.
    ("bluestore", &[GIB, 10 * GIB, 100 * GIB, 1000 * GIB]),
    ("ocfs2", &[GIB, 4 * GIB, 16 * GIB, 64 * GIB, 256 * GIB, 1024 * GIB]),
];
/// A copy takes this much, and begins at a multiple of it or below.
const COPY: u64 = 4096;
/// What of the head is needed to find copies by.
const HEAD: usize = 4096;

/// Marks the device, and zeroes all these places except the marks.
pub fn erase(run: &mut Run<'_>, id: MarkId, method: &Method) -> Result<(), WipeError> {
    let device = run.device;
    let data = device.data();
    let mut head = Buffer::zeros(HEAD.max(usize::try_from(device.block).unwrap_or(HEAD)));
    let known = u64::min(head.bytes().len() as u64, device.reach());
    device.read(head.part_mut(known), 0, "looking for superblocks")?;
    let (places, head) = places(head.bytes(), &data, device.reach());
    let total = places.iter().chain([&head]).map(|place| place.end - place.start).sum();
    run.control.set_progress(0, total);
    mark::write(device, device.tail(), id, method)?;
    if device.tail().is_empty() {
        mark::write(device, device.head(), id, method)?;
    }
    run.control.enter(Phase::ErasingSignatures);
    let zeros = Buffer::zeros(TRANSFER);
    for place in places {
        zero(run, place, &zeros)?;
    }
    device.sync("making the zeros durable")?;
    mark::write(device, device.head(), id, method)?;
    zero(run, head, &zeros)?;
    device.sync("making the zeros durable")
}

fn zero(run: &mut Run<'_>, place: Range<u64>, zeros: &Buffer) -> Result<(), WipeError> {
    run.go_over(place, TRANSFER as u64, |run, chunk| run.device.write_zeros(chunk, zeros, "zeroing signatures"))
}

/// All places in the data, in order, and the head.
fn places(head: &[u8], data: &Range<u64>, size: u64) -> (Vec<Range<u64>>, Range<u64>) {
    let head_end = END.clamp(data.start, data.end);
    let tail_start = size.saturating_sub(END).clamp(head_end, data.end);
    let mut copies: BTreeSet<u64> = FIXED.iter().flat_map(|(_, places)| places.iter().copied()).collect();
    // The usual places, also for a filesystem whose first superblock is gone already.
    for block in [1024, 2048, 4096] {
        copies.extend(ExtGeometry::usual(block).copies(size));
    }
    if let Some(ext) = ExtGeometry::read(head) {
        copies.extend(ext.copies(size));
    }
    copies.extend(xfs_copies(head, size));
    let between = copies.into_iter().filter(|place| (head_end..tail_start).contains(place)).map(|place| {
        let start = place / COPY * COPY;
        start.max(head_end)..(start + COPY).min(tail_start)
    });
    (between.chain(std::iter::once(tail_start..data.end)).collect(), data.start..head_end)
}

/// Where ext2, 3 and 4 keep superblocks (`Documentation/filesystems/ext4/blockgroup.rst`).
struct ExtGeometry {
    block: u64,
    first_block: u64,
    blocks_per_group: u64,
    spares: Spares,
}

enum Spares {
    /// In groups 0, 1, and the powers of 3, 5, and 7 (`sparse_super`).
    Sparse,
    /// In every group.
    All,
    /// In these groups (`sparse_super2`).
    Two([u64; 2]),
}

impl ExtGeometry {
    fn usual(block: u64) -> Self {
        Self { block, first_block: u64::from(block == 1024), blocks_per_group: 8 * block, spares: Spares::Sparse }
    }

    /// From the first superblock, at byte 1024, when there is one.
    fn read(head: &[u8]) -> Option<Self> {
        let superblock = head.get(1024..2048)?;
        let number = |at: usize| u64::from(u32::from_le_bytes(superblock[at..at + 4].try_into().expect("4 bytes")));
        let is_ext = superblock[56..58] == 0xEF53_u16.to_le_bytes();
        let (log_block, blocks_per_group) = (number(24), number(32));
        if !is_ext || log_block > 6 || blocks_per_group == 0 {
            return None;
        }
        let spares = if number(92) & 0x200 != 0 {
            Spares::Two([number(0x24C), number(0x250)])
        } else if number(100) & 1 != 0 {
            Spares::Sparse
        } else {
            Spares::All
        };
        Some(Self { block: 1024 << log_block, first_block: number(20), blocks_per_group, spares })
    }

    fn copies(&self, size: u64) -> impl Iterator<Item = u64> {
        let group_bytes = self.blocks_per_group * self.block;
        let groups = size / group_bytes + 1;
        let chosen: Vec<u64> = match self.spares {
            Spares::All => (1..groups).collect(),
            Spares::Two(groups) => groups.to_vec(),
            Spares::Sparse => [3_u64, 5, 7]
                .iter()
                .flat_map(|base| std::iter::successors(Some(1), |power: &u64| power.checked_mul(*base)))
                .filter(|group| *group < groups)
                .collect(),
        };
        let first = self.first_block * self.block;
        chosen.into_iter().filter(move |group| *group < groups).map(move |group| first + group * group_bytes)
    }
}

/// Where XFS keeps its superblocks: at the start of each allocation group, whose size
/// the first tells (`xfs_dsb` in `fs/xfs/libxfs/xfs_format.h`).
fn xfs_copies(head: &[u8], size: u64) -> Vec<u64> {
    if !head.starts_with(b"XFSB") {
        return Vec::new();
    }
    let number = |at: usize| u64::from(u32::from_be_bytes(head[at..at + 4].try_into().expect("4 bytes")));
    let group_bytes = number(4) * number(84);
    // The smallest group is 16 MiB; a forged one of a few bytes would be a full wipe.
    if group_bytes < 16 * MIB {
        return Vec::new();
    }
    (1..number(88)).map(|group| group * group_bytes).take_while(|place| *place < size).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(size: u64) -> Range<u64> {
        4096..size - 4096
    }

    #[test]
    fn a_small_device_is_zeroed_all_over() {
        for size in [8192, 1 << 20, 16 << 20, 32 << 20] {
            let (places, head) = places(&[0; HEAD], &data(size), size);
            assert_eq!((places.len(), places[0].clone()), (1, head.end..size - 4096), "{size}");
            assert_eq!(head.start, 4096);
        }
        let (places, head) = places(&[0; HEAD], &(4096..4096), 4096);
        assert!(head.is_empty() && places.iter().all(Range::is_empty), "all of it is the mark");
    }

    #[test]
    fn places_lie_in_the_data_in_order_and_hold_the_known_copies() {
        let size = 2 << 40;
        let (places, head) = places(&[0; HEAD], &data(size), size);
        assert_eq!(head, 4096..END);
        assert!(places.is_sorted_by(|a, b| a.end <= b.start), "{places:?}");
        assert_eq!(places.last(), Some(&(size - END..size - 4096)));
        // ext4 of 4 KiB blocks, group 1, 3^9; of 1 KiB, group 3; btrfs; Ceph.
        let group = 128 * MIB;
        for place in [group, 729 * group, (1 + 3 * 8192) * 1024, 64 * MIB, 256 * GIB, 1000 * GIB] {
            assert!(places.iter().any(|range| range.contains(&place)), "{place}");
        }
        let bytes: u64 = places.iter().map(|place| place.end - place.start).sum();
        assert!(bytes < END + MIB, "{bytes}");
    }

    #[test]
    fn a_superblock_that_nobody_would_make_is_no_reason_to_write_everywhere() {
        let mut head = [0; HEAD];
        head[..4].copy_from_slice(b"XFSB");
        head[84..92].copy_from_slice(&[0, 0, 0, 1, 255, 255, 255, 255]);
        assert_eq!(xfs_copies(&head, 1 << 40), [0_u64; 0]);
        head[1024 + 56..1024 + 58].copy_from_slice(&0xEF53_u16.to_le_bytes());
        assert!(ExtGeometry::read(&head).is_none(), "no blocks in a group");
    }

    #[test]
    fn unusual_ext_filesystems_tell_where_their_copies_are() {
        let mut head = [0; HEAD];
        let mut put = |at: usize, value: u32| head[1024 + at..1028 + at].copy_from_slice(&value.to_le_bytes());
        put(56, 0xEF53);
        put(24, 2);
        put(32, 16384);
        let group = 64 * MIB;
        let ext = ExtGeometry::read(&head).expect("it is ext");
        assert_eq!(ext.copies(4 * group).collect::<Vec<_>>(), [group, 2 * group, 3 * group, 4 * group]);
        put_two(&mut head);
        let ext = ExtGeometry::read(&head).expect("it is ext");
        assert_eq!(ext.copies(10 * group).collect::<Vec<_>>(), [group, 9 * group]);
    }

    fn put_two(head: &mut [u8]) {
        for (at, value) in [(92, 0x200_u32), (0x24C, 1), (0x250, 9)] {
            head[1024 + at..1028 + at].copy_from_slice(&value.to_le_bytes());
        }
    }
}
