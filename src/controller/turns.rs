//! Whose turn it is to wipe: so many devices of the node at the same time, and one volume
//! of each physical disk, which would only be slower for two.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::identity::DeviceNumber;
use crate::plan::Target;

/// More devices than a node has.
const MOST: usize = 1 << 20;

/// What volumes take turns at. The controller owns it.
pub struct Turns {
    wipes: usize,
    node: Arc<Semaphore>,
    /// They wait to take turns out of the game, so that there are fewer.
    fewer: JoinSet<()>,
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
        let wipes = wipes.min(MOST);
        Self { wipes, node: Arc::new(Semaphore::new(wipes)), fewer: JoinSet::new(), disks: BTreeMap::new() }
    }

    /// For so many devices from now on. What is being wiped goes on.
    pub fn set_wipes(&mut self, wipes: usize) {
        let wipes = wipes.min(MOST);
        let before = std::mem::replace(&mut self.wipes, wipes);
        if wipes > before {
            self.node.add_permits(wipes - before);
        } else if let Ok(fewer @ 1..) = u32::try_from(before - wipes) {
            let node = Arc::clone(&self.node);
            self.fewer.spawn(async move {
                node.acquire_many_owned(fewer).await.expect("the semaphore is never closed").forget();
            });
        }
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

    #[tokio::test]
    async fn a_new_number_of_turns_holds_once_those_that_were_given_end() {
        let mut turns = Turns::new(3);
        let mut begun = Vec::new();
        for minor in 0..3 {
            begun.push(place(&mut turns, minor).wait().await);
        }
        turns.set_wipes(1);
        tokio::task::yield_now().await;
        let next = place(&mut turns, 9);
        for _ in 0..2 {
            drop(begun.pop());
            tokio::task::yield_now().await;
            assert!(next.wait().now_or_never().is_none(), "one is still being wiped");
        }
        drop(begun.pop());
        let only = next.wait().now_or_never().expect("it is the only one");
        assert!(place(&mut turns, 10).wait().now_or_never().is_none());
        turns.set_wipes(2);
        let second = place(&mut turns, 10).wait().now_or_never().expect("the second of two");
        drop((only, second));
    }
}
