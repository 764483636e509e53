//! What QEMU says of the device: the protocol of vhost-user, as far as a file system without anything special needs it.

use super::ring::Memory;
use super::{lock, Ring, Shared, RINGS};
use rustix::fs::SealFlags;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use vhost::vhost_user::message::*;
use vhost::vhost_user::{BackendReqHandler, Error, GpuBackend, Result, VhostUserBackendReqHandler};
use vhost::VhostUserMemoryRegionBase;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

/// VIRTIO_F_VERSION_1.
const VERSION_1: u64 = 1 << 32;
/// VIRTIO_RING_F_EVENT_IDX.
const EVENT_INDEX: u64 = 1 << 29;
/// VIRTIO_RING_F_INDIRECT_DESC.
const INDIRECT: u64 = 1 << 28;
const FEATURES: u64 =
    VERSION_1 | EVENT_INDEX | INDIRECT | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// Most pieces that the guest's memory has.
const MOST_REGIONS: usize = 8;

/// Where QEMU has the pieces of the guest's memory.
#[derive(Default)]
pub struct Setup {
    regions: Vec<VhostUserMemoryRegion>,
}

impl Setup {
    /// The guest's address of what QEMU has there.
    fn translate(&self, address: u64) -> Result<u64> {
        let found = self.regions.iter().find_map(|region| {
            let offset = address.checked_sub(region.user_addr)?;
            (offset < region.memory_size).then_some(region.guest_phys_addr + offset)
        });
        found.ok_or(Error::InvalidParam)
    }
}

/// Says what is asked until the socket ends, or something comes that does not belong there.
pub fn run(stream: UnixStream, shared: &Arc<Shared>) {
    let mut handler = BackendReqHandler::from_stream(stream, shared.clone());
    while matches!(
        handler.handle_request(),
        Ok(()) | Err(Error::SocketRetry(_))
    ) {}
}

impl Shared {
    fn ring(&self, index: u32) -> Result<&Ring> {
        let ring = self.rings.get(index as usize);
        ring.ok_or(Error::InvalidParam)
    }
}

/// One piece of memory. Its file can never become shorter: what lies beyond its end kills whoever touches it.
fn map(region: &VhostUserMemoryRegion, file: File) -> Option<GuestRegionMmap> {
    let seals = rustix::fs::fcntl_get_seals(&file).ok()?;
    if !seals.contains(SealFlags::SHRINK) {
        return None;
    }
    let size = usize::try_from(region.memory_size).ok()?;
    region.guest_phys_addr.checked_add(region.memory_size)?;
    region.user_addr.checked_add(region.memory_size)?;
    let file = FileOffset::new(file, region.mmap_offset);
    let mapped = MmapRegion::from_file(file, size).ok()?;
    GuestRegionMmap::new(mapped, GuestAddress(region.guest_phys_addr))
}

impl VhostUserBackendReqHandler for Shared {
    fn set_owner(&self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&self) -> Result<()> {
        Ok(())
    }

    fn get_features(&self) -> Result<u64> {
        Ok(FEATURES)
    }

    fn set_features(&self, features: u64) -> Result<()> {
        if features & !FEATURES != 0 {
            return Err(Error::InvalidParam);
        }
        for ring in &self.rings {
            ring.set_event_index(features & EVENT_INDEX != 0);
        }
        Ok(())
    }

    fn get_protocol_features(&self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK)
    }

    fn set_protocol_features(&self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&self) -> Result<u64> {
        Ok(RINGS as u64)
    }

    fn set_mem_table(
        &self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        if regions.len() > MOST_REGIONS || regions.len() != files.len() {
            return Err(Error::InvalidParam);
        }
        let mapped = regions
            .iter()
            .zip(files)
            .map(|(region, file)| map(region, file));
        let mapped: Option<Vec<_>> = mapped.collect();
        let mut mapped = mapped.ok_or(Error::InvalidParam)?;
        mapped.sort_by_key(GuestMemoryRegion::start_addr);
        let memory = Memory::from_regions(mapped).map_err(|_| Error::InvalidParam)?;
        let memory = Arc::new(memory);
        lock(&self.setup).regions = regions.to_vec();
        for ring in &self.rings {
            ring.set_memory(memory.clone());
        }
        Ok(None)
    }

    fn set_vring_num(&self, index: u32, size: u32) -> Result<()> {
        let size = u16::try_from(size).map_err(|_| Error::InvalidParam)?;
        self.ring(index)?.set_size(size).ok_or(Error::InvalidParam)
    }

    fn set_vring_addr(
        &self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let setup = lock(&self.setup);
        let (table, available, used) = (
            setup.translate(descriptor)?,
            setup.translate(available)?,
            setup.translate(used)?,
        );
        let set = self.ring(index)?.set_addresses(table, available, used);
        set.ok_or(Error::InvalidParam)
    }

    fn set_vring_base(&self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        self.ring(index)?.set_next(base);
        Ok(())
    }

    fn get_vring_base(&self, index: u32) -> Result<VhostUserVringState> {
        let next = self.ring(index)?.stop(|| self.is_gone());
        Ok(VhostUserVringState::new(index, u32::from(next)))
    }

    fn set_vring_kick(&self, index: u8, fd: Option<File>) -> Result<()> {
        let fd = fd.ok_or(Error::InvalidParam)?;
        let started = self.ring(u32::from(index))?.start(fd.into());
        started.ok_or(Error::InvalidParam)
    }

    fn set_vring_call(&self, index: u8, fd: Option<File>) -> Result<()> {
        self.ring(u32::from(index))?.set_call(fd.map(Into::into));
        Ok(())
    }

    fn set_vring_err(&self, index: u8, _fd: Option<File>) -> Result<()> {
        // QEMU does nothing with what it is told there.
        self.ring(u32::from(index)).map(drop)
    }

    fn set_vring_enable(&self, index: u32, enable: bool) -> Result<()> {
        self.ring(index)?.set_enabled(enable);
        Ok(())
    }

    // Nothing of the rest was offered.

    fn reset_device(&self) -> Result<()> {
        Err(Error::InvalidParam)
    }

    fn get_config(&self, _: u32, _: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Err(Error::InvalidParam)
    }

    fn set_config(&self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        Err(Error::InvalidParam)
    }

    fn set_gpu_socket(&self, _: GpuBackend) -> Result<()> {
        Err(Error::InvalidParam)
    }

    fn get_shared_object(&self, _: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidParam)
    }

    fn get_inflight_fd(&self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Err(Error::InvalidParam)
    }

    fn set_inflight_fd(&self, _: &VhostUserInflight, _: File) -> Result<()> {
        Err(Error::InvalidParam)
    }

    fn get_max_mem_slots(&self) -> Result<u64> {
        Err(Error::InvalidParam)
    }

    fn add_mem_region(
        &self,
        _: &VhostUserSingleMemoryRegion,
        _: File,
        _: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        Err(Error::InvalidParam)
    }

    fn remove_mem_region(&self, _: &VhostUserSingleMemoryRegion) -> Result<()> {
        Err(Error::InvalidParam)
    }

    fn set_device_state_fd(
        &self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidParam)
    }

    fn check_device_state(&self) -> Result<()> {
        Err(Error::InvalidParam)
    }

    fn get_shmem_config(&self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidParam)
    }

    fn set_log_base(&self, _: &VhostUserLog, _: File) -> Result<()> {
        Err(Error::InvalidParam)
    }
}
