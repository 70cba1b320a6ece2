//! The tenants: claims, the secrets that they write, and what is left of them after.

use std::fs::{self, File};
use std::io::Write as _;
use std::time::Instant;

use anyhow::ensure;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;

use super::screen::Screen;
use super::stage::{Published, Stage};

const FILE: &str = "secrets/diary.txt";
/// Not at either end of the device, and across a page boundary.
const OFFSET: u64 = (20 << 20) - 7;

/// A bound claim and what was written through it.
pub struct Tenant<'a> {
    pub volume: &'a Published,
    pub claim: PersistentVolumeClaim,
    secret: String,
}

/// Binds a claim to each volume and writes a secret through it.
pub async fn move_in<'a>(screen: &Screen, stage: &Stage, volumes: &'a [Published]) -> anyhow::Result<Vec<Tenant<'a>>> {
    screen.act("4  Tenants claim the volumes and write secrets to them");
    let mut tenants = Vec::new();
    for volume in volumes {
        let start = Instant::now();
        let tenant = Tenant::settle(stage, volume).await?;
        screen.done(&format!("a claim binds {} ({})", volume.pv, volume.label), start.elapsed());
        tenants.push(tenant);
    }
    for tenant in &tenants {
        screen.checked(&format!("its secret is in {}", tenant.still_has_it(stage)?), "yes");
    }
    Ok(tenants)
}

impl<'a> Tenant<'a> {
    /// Binds a claim to the volume and writes a secret through it.
    pub async fn settle(stage: &Stage, volume: &'a Published) -> anyhow::Result<Self> {
        let claim = stage.node.bind(&volume.pv).await;
        let secret = format!("tenant-secret-{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
        let tenant = Self { volume, claim, secret };
        tenant.write(stage)?;
        Ok(tenant)
    }

    /// Makes sure that the secret is on the volume, and says where that was looked for.
    pub fn still_has_it(&self, stage: &Stage) -> anyhow::Result<String> {
        let (place, found) = self.look(stage)?;
        ensure!(found, "the secret was written to {place}, but is not there");
        Ok(place)
    }

    /// Makes sure that the secret is gone.
    pub fn has_lost_it(&self, stage: &Stage) -> anyhow::Result<()> {
        let (place, found) = self.look(stage)?;
        ensure!(!found, "the secret is still in {place}");
        Ok(())
    }

    fn write(&self, stage: &Stage) -> anyhow::Result<()> {
        match self.volume.disk {
            Some(disk) if self.volume.is_device() => stage.disks[disk].write_at(OFFSET, self.secret.as_bytes()),
            _ => {
                let path = self.volume.path.join(FILE);
                fs::create_dir(self.volume.path.join("secrets"))?;
                let mut file = File::create_new(path)?;
                file.write_all(self.secret.as_bytes())?;
                file.sync_all()?;
            }
        }
        Ok(())
    }

    /// Whether the secret is on the volume, and where that was looked for: in the
    /// file, or anywhere on the disk of a device.
    fn look(&self, stage: &Stage) -> anyhow::Result<(String, bool)> {
        Ok(match self.volume.disk {
            Some(disk) if self.volume.is_device() => {
                let place = format!("the file behind {}, at byte {OFFSET}", self.volume.label);
                (place, stage.disks[disk].backing_contains(self.secret.as_bytes()))
            }
            _ => {
                let path = self.volume.path.join(FILE);
                let found = fs::read_to_string(path).is_ok_and(|text| text == self.secret);
                (format!("{}/{FILE}", self.volume.label), found)
            }
        })
    }
}

/// Looks for the secrets once more: none may be there.
pub fn look_for_remains(screen: &Screen, stage: &Stage, tenants: &[Tenant<'_>]) -> anyhow::Result<()> {
    screen.act("6  What is left of the secrets");
    for tenant in tenants {
        let volume = tenant.volume;
        if tenant.volume.is_device() {
            tenant.has_lost_it(stage)?;
            screen.checked(&format!("{}: searched all of the file behind the device", volume.label), "nothing");
            let disk = &stage.disks[volume.disk.expect("a device is on a disk")];
            ensure!(disk.read_all().iter().all(|byte| *byte == 0), "{} has a byte that is not zero", volume.label);
            screen.checked(&format!("{}: read all of the device", volume.label), "zeros");
            continue;
        }
        let names = fs::read_dir(&volume.path)?.map(|entry| entry.map(|entry| entry.file_name()));
        let left: Vec<_> = names.filter(|name| name.as_ref().is_ok_and(|name| name != "lost+found")).collect();
        ensure!(left.is_empty(), "{} still has {left:?}", volume.label);
        screen.checked(&format!("{}: listed the filesystem", volume.label), "no file");
        if volume.disk.is_some_and(|disk| stage.disks[disk].backing_contains(tenant.secret.as_bytes())) {
            screen.note("its files are removed; the filesystem's free blocks are not overwritten");
        }
    }
    Ok(())
}
