//! Whose turn it is to wipe: so many devices of the node at the same time, and one volume
//! of each physical disk, which would only be slower for two.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::identity::DeviceNumber;
use crate::plan::Target;

/// What volumes take turns at. The controller owns it.
pub struct Turns {
    node: Arc<Semaphore>,
    disks: BTreeMap<DeviceNumber, Arc<Semaphore>>,
}

/// A place in the queues for a volume.
pub struct Place(Vec<Arc<Semaphore>>);

/// Leave to wipe, for as long as this value lives.
pub struct Turn {
    _permits: Vec<OwnedSemaphorePermit>,
}

impl Turns {
    /// For so many devices at the same time.
    pub fn new(wipes: usize) -> Self {
        Self { node: Arc::new(Semaphore::new(wipes)), disks: BTreeMap::new() }
    }

    /// The queues that the volume stands in: those of its disks; and, as it takes
    /// bandwidth, and long, that of the node if it is a device.
    pub fn place(&mut self, target: &Target) -> Place {
        self.disks.retain(|_, disk| Arc::strong_count(disk) > 1);
        // In the order of their numbers, so that no two volumes wait for each other.
        let disks: std::collections::BTreeSet<_> = target.disks.iter().copied().collect();
        let mut queues: Vec<_> = disks
            .into_iter()
            .map(|disk| Arc::clone(self.disks.entry(disk).or_insert_with(|| Arc::new(Semaphore::new(1)))))
            .collect();
        if target.identity.is_device() {
            queues.push(Arc::clone(&self.node));
        }
        Place(queues)
    }
}

impl Place {
    /// Waits for its turn.
    pub async fn wait(&self) -> Turn {
        let mut permits = Vec::with_capacity(self.0.len());
        for queue in &self.0 {
            permits.push(Arc::clone(queue).acquire_owned().await.expect("the semaphore is never closed"));
        }
        Turn { _permits: permits }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use futures::FutureExt as _;

    fn place(turns: &mut Turns, minor: u32) -> Place {
        let mut target = testing::target("a", minor);
        target.disks = [DeviceNumber { major: 7, minor }].into();
        turns.place(&target)
    }

    #[test]
    fn one_volume_of_a_disk_and_so_many_devices_have_a_turn() {
        let mut turns = Turns::new(2);
        let first = place(&mut turns, 1).wait().now_or_never().expect("all is free");
        let same_disk = place(&mut turns, 1);
        assert!(same_disk.wait().now_or_never().is_none(), "the disk has one already");
        let second = place(&mut turns, 2).wait().now_or_never().expect("the second of two");
        assert!(place(&mut turns, 3).wait().now_or_never().is_none(), "the node has two already");
        drop(first);
        assert!(same_disk.wait().now_or_never().is_some());
        drop(second);
    }
}
