//! The security associations of one worker.
//!
//! - An identity becomes an SA once. Installing it again finds the same SA, with its counter or window, and enables it.
//! - [`SaDatabase::suspend`] takes an SA out of use and forgets nothing.
//! - [`SaDatabase::erase_epoch`] alone forgets: it is called when the node's X25519 secret of the epoch is erased, and
//!   the epoch is then refused for the life of the database, which is the life of one (boot, worker).
//! - All tables are bounded; what does not fit is an error. Of a full table only a new boot cures
//!   ([`InstallError::needs_new_boot`]).

use super::schedule::{SaIdentity, SaKeys, queue_of, spi};
use super::{CipherLibrary, EspDrop, InboundSa, Opened, OutboundSa, SaTraffic, Sealed};
use crate::types::{BootId, Epoch, Queues, Spi, Time};
use crate::wire::esp::{Datagram, MAX_DATAGRAM_LEN, NextHeader, classify};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// SAs of one direction in one worker: 1000 peers on 21 networks in three epochs, four queues each; about 2 KiB each.
pub const MAX_SAS_PER_DIRECTION: usize = 1 << 18;
/// Receiving SAs with one SPI: bounds the work that one datagram can cause. Of the random tags of
/// 24 bits that a full table has for one of three epochs, five are equal in fewer than one of 10^6 databases.
pub const MAX_CANDIDATES: usize = 4;
/// Erased epochs remembered one by one; past that all older than the oldest of them are refused too. 1024 rotations
/// are 17 hours at the shortest interval, and at most three epochs are alive.
pub const MAX_ERASED_EPOCHS: usize = 1024;

/// Which of the SAs of a node belong to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerShare {
    /// This worker, from 0. It sends with SAs of this queue.
    pub worker: u8,
    /// How many workers there are, 1..=16. It receives with SAs of each queue that is `worker` modulo this.
    pub workers: u8,
}

impl WorkerShare {
    /// The only worker.
    pub const WHOLE: WorkerShare = WorkerShare { worker: 0, workers: 1 };

    /// Whether this worker is the one for a queue: the SAs of it are in its database and in no other.
    pub fn owns(self, queue: u8) -> bool {
        self.workers != 0 && queue % self.workers == self.worker
    }
}

/// Why an SA was not installed. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InstallError {
    /// The epoch's secret is erased: its SAs never come again.
    #[error("epoch {0} is erased")]
    Erased(Epoch),
    /// [`MAX_SAS_PER_DIRECTION`] is reached.
    #[error("the table of security associations is full")]
    TableFull,
    /// [`MAX_CANDIDATES`] other SAs have this SPI.
    #[error("too many security associations share SPI {0}")]
    SpiCrowded(Spi),
    /// The keys were derived for another identity.
    #[error("keys of another security association")]
    ForeignKeys,
    /// The near end of the SA is another boot than this database's.
    #[error("a security association of another boot")]
    WrongBoot,
    /// Another worker owns the SA, or there is no such queue.
    #[error("a security association of another worker")]
    WrongWorker,
}

impl InstallError {
    /// Whether the node must draw a new boot to go on. Not for a crowded SPI: nothing would be lost by the refusal, the
    /// next epoch has other SPIs, and a hostile peer can choose its boots so that their SPIs are the same.
    pub fn needs_new_boot(self) -> bool {
        matches!(self, InstallError::TableFull)
    }
}

/// Names a sending SA; never another one, even after it is erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OutboundIndex(Handle);

/// Names a receiving SA; never another one, even after it is erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InboundIndex(Handle);

/// The way of an SA's packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Sent.
    Outbound,
    /// Received.
    Inbound,
}

/// One SA, for people to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SaSummary {
    /// Which SA.
    pub identity: SaIdentity,
    /// Its name on the wire.
    pub spi: Spi,
    /// Sent or received.
    pub direction: Direction,
    /// Whether it is in use.
    pub enabled: bool,
    /// The last sequence number sent, or the highest received.
    pub sequence: u64,
    /// What went through it.
    pub traffic: SaTraffic,
}

/// A packet that an SA of the database opened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Received {
    /// The SA.
    pub sa: InboundIndex,
    /// What it carried.
    pub opened: Opened,
}

/// The security associations of one worker in one boot: makes each once, keeps its counter or window until its epoch
/// is erased, finds it by index or SPI.
pub struct SaDatabase {
    boot: BootId,
    share: WorkerShare,
    library: CipherLibrary,
    outbound: Table<OutboundSa>,
    inbound: Table<InboundSa>,
    by_spi: HashMap<Spi, Candidates>,
    erased: ErasedEpochs,
    /// For opening with several candidates; as long as the longest datagram as soon as two SAs share an SPI.
    scratch: Vec<u8>,
}

impl SaDatabase {
    /// The database of one worker in one boot of the node. There must be one at most for each.
    pub fn new(boot: BootId, share: WorkerShare) -> SaDatabase {
        SaDatabase::with_library(boot, share, CipherLibrary::AwsLc)
    }

    /// The same, with the library that the self-test chose ([`super::CipherReport`]).
    pub fn with_library(boot: BootId, share: WorkerShare, library: CipherLibrary) -> SaDatabase {
        SaDatabase {
            boot,
            share,
            library,
            outbound: Table::default(),
            inbound: Table::default(),
            by_spi: HashMap::new(),
            erased: ErasedEpochs::default(),
            scratch: Vec::new(),
        }
    }

    /// Which SAs these are.
    pub fn share(&self) -> WorkerShare {
        self.share
    }

    /// The boot whose SAs these are.
    pub fn boot(&self) -> BootId {
        self.boot
    }

    /// Makes or enables the sending SA `identity`.
    pub fn install_outbound(&mut self, identity: &SaIdentity, keys: &SaKeys) -> Result<OutboundIndex, InstallError> {
        let ours = identity.queue == self.share.worker;
        self.admit(identity, keys, identity.src_boot, ours)?;
        if let Some(handle) = self.outbound.find(identity) {
            self.outbound.get_mut(handle).into_iter().for_each(|sa| sa.set_enabled(true));
            return Ok(OutboundIndex(handle));
        }
        let library = self.library;
        let handle = self.outbound.insert(identity, || OutboundSa::new(keys, library))?;
        Ok(OutboundIndex(handle))
    }

    /// Makes or enables the receiving SA `identity`. One that was suspended takes everything up to its highest
    /// sequence number as seen.
    pub fn install_inbound(&mut self, identity: &SaIdentity, keys: &SaKeys) -> Result<InboundIndex, InstallError> {
        self.admit(identity, keys, identity.dst_boot, self.share.owns(identity.queue))?;
        if let Some(handle) = self.inbound.find(identity) {
            self.inbound.get_mut(handle).into_iter().for_each(InboundSa::resume);
            return Ok(InboundIndex(handle));
        }
        let spi = spi(identity);
        let taken = self.by_spi.get(&spi).map_or(0, |candidates| candidates.as_slice().len());
        if taken == MAX_CANDIDATES {
            return Err(InstallError::SpiCrowded(spi));
        }
        let library = self.library;
        let handle = self.inbound.insert(identity, || InboundSa::new(keys, library))?;
        self.by_spi.entry(spi).or_default().push(handle);
        if taken > 0 {
            self.scratch.resize(MAX_DATAGRAM_LEN, 0);
        }
        Ok(InboundIndex(handle))
    }

    fn admit(&self, identity: &SaIdentity, keys: &SaKeys, near: BootId, ours: bool) -> Result<(), InstallError> {
        if keys.identity() != identity {
            return Err(InstallError::ForeignKeys);
        }
        if near != self.boot {
            return Err(InstallError::WrongBoot);
        }
        if !ours || identity.queue >= Queues::MAX {
            return Err(InstallError::WrongWorker);
        }
        if self.erased.contains(identity.epoch) {
            return Err(InstallError::Erased(identity.epoch));
        }
        Ok(())
    }

    /// Takes the SA out of use, in both directions, and keeps its counter and window. Returns whether there is one.
    pub fn suspend(&mut self, identity: &SaIdentity) -> bool {
        let outbound = self.outbound.find(identity).and_then(|handle| self.outbound.get_mut(handle));
        let inbound = self.inbound.find(identity).and_then(|handle| self.inbound.get_mut(handle));
        let known = outbound.is_some() || inbound.is_some();
        outbound.into_iter().for_each(|sa| sa.set_enabled(false));
        inbound.into_iter().for_each(InboundSa::suspend);
        known
    }

    /// Suspends every SA that matches; returns how many were in use.
    pub fn suspend_where(&mut self, mut matches: impl FnMut(&SaIdentity) -> bool) -> usize {
        let mut count = 0;
        for sa in self.outbound.values_mut().filter(|sa| sa.is_enabled() && matches(sa.identity())) {
            sa.set_enabled(false);
            count += 1;
        }
        for sa in self.inbound.values_mut().filter(|sa| sa.is_enabled() && matches(sa.identity())) {
            sa.suspend();
            count += 1;
        }
        count
    }

    /// Forgets every SA of the epoch, and refuses the epoch from now on: the X25519 secret of it is erased. Returns
    /// how many SAs there were.
    pub fn erase_epoch(&mut self, epoch: Epoch) -> usize {
        self.erased.insert(epoch);
        let outbound = self.outbound.erase(epoch);
        let inbound = self.inbound.erase(epoch);
        for (handle, identity) in &inbound {
            let spi = spi(identity);
            if let Some(candidates) = self.by_spi.get_mut(&spi) {
                candidates.remove(*handle);
                if candidates.as_slice().is_empty() {
                    self.by_spi.remove(&spi);
                }
            }
        }
        outbound.len() + inbound.len()
    }

    /// Seals with a sending SA; see [`OutboundSa::seal`].
    pub fn seal(
        &mut self,
        sa: OutboundIndex,
        buffer: &mut [u8],
        inner_len: usize,
        next_header: NextHeader,
    ) -> Result<Sealed, EspDrop> {
        self.outbound.get_mut(sa.0).ok_or(EspDrop::NoSa)?.seal(buffer, inner_len, next_header)
    }

    /// Opens a UDP payload in place with the SA that its SPI names; see [`InboundSa::open`]. `Ok(None)` is a
    /// keep-alive.
    pub fn open(&mut self, datagram: &mut [u8], now: Time) -> Result<Option<Received>, EspDrop> {
        let header = match classify(datagram) {
            Datagram::KeepAlive => return Ok(None),
            Datagram::SpiZero => return Err(EspDrop::SpiZero),
            Datagram::TooShort => return Err(EspDrop::TooShort),
            Datagram::Esp(header) => header,
        };
        let candidates = self.by_spi.get(&header.spi).copied().unwrap_or_default();
        match *candidates.as_slice() {
            [] if !self.share.owns(queue_of(header.spi)) => Err(EspDrop::WrongWorker),
            [] => Err(EspDrop::UnknownSpi),
            [handle] => {
                let opened = self.inbound.get_mut(handle).ok_or(EspDrop::UnknownSpi)?.open(datagram, now)?;
                Ok(Some(Received { sa: InboundIndex(handle), opened }))
            }
            ref several => self.open_with_one_of(several, datagram, now).map(Some),
        }
    }

    /// Tries each candidate on a copy, since a failed one destroys what it tried. A packet that is authentic under
    /// one of them is not tried with the others.
    fn open_with_one_of(&mut self, candidates: &[Handle], datagram: &mut [u8], now: Time) -> Result<Received, EspDrop> {
        let copy = self.scratch.get_mut(..datagram.len()).ok_or(EspDrop::TooLong)?;
        let mut reason = EspDrop::UnknownSpi;
        for &handle in candidates {
            let Some(sa) = self.inbound.get_mut(handle) else { continue };
            copy.copy_from_slice(datagram);
            match sa.open(copy, now) {
                Ok(opened) => {
                    datagram.copy_from_slice(copy);
                    return Ok(Received { sa: InboundIndex(handle), opened });
                }
                Err(authentic @ (EspDrop::BadPadding | EspDrop::BadNextHeader)) => return Err(authentic),
                Err(_) if reason == EspDrop::BadTag => {}
                Err(other) => reason = other,
            }
        }
        Err(reason)
    }

    /// The sending SA.
    pub fn outbound(&self, sa: OutboundIndex) -> Option<&OutboundSa> {
        self.outbound.get(sa.0)
    }

    /// The sending SA, to seal a batch with one look-up.
    pub fn outbound_mut(&mut self, sa: OutboundIndex) -> Option<&mut OutboundSa> {
        self.outbound.get_mut(sa.0)
    }

    /// The receiving SA.
    pub fn inbound(&self, sa: InboundIndex) -> Option<&InboundSa> {
        self.inbound.get(sa.0)
    }

    /// Finds a sending SA that was installed, enabled or not.
    pub fn find_outbound(&self, identity: &SaIdentity) -> Option<OutboundIndex> {
        self.outbound.find(identity).map(OutboundIndex)
    }

    /// Finds a receiving SA that was installed, enabled or not.
    pub fn find_inbound(&self, identity: &SaIdentity) -> Option<InboundIndex> {
        self.inbound.find(identity).map(InboundIndex)
    }

    /// All SAs, suspended ones too: the sending ones, then the receiving ones, each in the order of identities.
    pub fn summaries(&self) -> impl Iterator<Item = SaSummary> + '_ {
        let outbound = self.outbound.values().map(|sa| SaSummary {
            identity: *sa.identity(),
            spi: sa.spi(),
            direction: Direction::Outbound,
            enabled: sa.is_enabled(),
            sequence: sa.sequence(),
            traffic: sa.traffic(),
        });
        let inbound = self.inbound.values().map(|sa| SaSummary {
            identity: *sa.identity(),
            spi: sa.spi(),
            direction: Direction::Inbound,
            enabled: sa.is_enabled(),
            sequence: sa.sequence(),
            traffic: sa.traffic(),
        });
        outbound.chain(inbound)
    }
}

/// A place in a [`Table`] and the life of what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
struct Handle {
    slot: u32,
    life: u32,
}

/// SAs at fixed places, so that a packet needs one indexed look-up; boxed, so that key material is never moved.
struct Table<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    by_identity: BTreeMap<SaIdentity, Handle>,
}

struct Slot<T> {
    life: u32,
    sa: Option<Box<T>>,
}

impl<T> Default for Table<T> {
    fn default() -> Table<T> {
        Table { slots: Vec::new(), free: Vec::new(), by_identity: BTreeMap::new() }
    }
}

impl<T> Table<T> {
    fn find(&self, identity: &SaIdentity) -> Option<Handle> {
        self.by_identity.get(identity).copied()
    }

    fn get(&self, handle: Handle) -> Option<&T> {
        self.slots.get(handle.slot as usize).filter(|slot| slot.life == handle.life)?.sa.as_deref()
    }

    fn get_mut(&mut self, handle: Handle) -> Option<&mut T> {
        self.slots.get_mut(handle.slot as usize).filter(|slot| slot.life == handle.life)?.sa.as_deref_mut()
    }

    fn insert(&mut self, identity: &SaIdentity, make: impl FnOnce() -> T) -> Result<Handle, InstallError> {
        if self.by_identity.len() >= MAX_SAS_PER_DIRECTION {
            return Err(InstallError::TableFull);
        }
        let index = self.free.pop().unwrap_or(self.slots.len() as u32);
        if index as usize == self.slots.len() {
            self.slots.push(Slot { life: 0, sa: None });
        }
        let slot = self.slots.get_mut(index as usize).ok_or(InstallError::TableFull)?;
        slot.sa = Some(Box::new(make()));
        let handle = Handle { slot: index, life: slot.life };
        self.by_identity.insert(*identity, handle);
        Ok(handle)
    }

    fn erase(&mut self, epoch: Epoch) -> Vec<(Handle, SaIdentity)> {
        let of_epoch = self.by_identity.iter().filter(|(identity, _)| identity.epoch == epoch);
        let gone: Vec<_> = of_epoch.map(|(identity, handle)| (*handle, *identity)).collect();
        for (handle, identity) in &gone {
            self.by_identity.remove(identity);
            if let Some(slot) = self.slots.get_mut(handle.slot as usize) {
                slot.sa = None;
                slot.life = slot.life.wrapping_add(1);
                self.free.push(handle.slot);
            }
        }
        gone
    }

    fn values(&self) -> impl Iterator<Item = &T> {
        self.by_identity.values().filter_map(|&handle| self.get(handle))
    }

    fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.slots.iter_mut().filter_map(|slot| slot.sa.as_deref_mut())
    }
}

/// The receiving SAs with one SPI.
#[derive(Clone, Copy, Default)]
struct Candidates {
    handles: [Handle; MAX_CANDIDATES],
    len: usize,
}

impl Candidates {
    fn as_slice(&self) -> &[Handle] {
        self.handles.get(..self.len).unwrap_or_default()
    }

    /// The caller has checked that there is room.
    fn push(&mut self, handle: Handle) {
        if let Some(place) = self.handles.get_mut(self.len) {
            *place = handle;
            self.len += 1;
        }
    }

    fn remove(&mut self, handle: Handle) {
        let kept = self.as_slice().iter().copied().filter(|&other| other != handle);
        *self = kept.fold(Candidates::default(), |mut candidates, other| {
            candidates.push(other);
            candidates
        });
    }
}

/// The epochs that never come again.
#[derive(Default)]
struct ErasedEpochs {
    all_through: Option<Epoch>,
    single: BTreeSet<Epoch>,
}

impl ErasedEpochs {
    fn contains(&self, epoch: Epoch) -> bool {
        self.all_through.is_some_and(|floor| epoch <= floor) || self.single.contains(&epoch)
    }

    fn insert(&mut self, epoch: Epoch) {
        if !self.contains(epoch) {
            self.single.insert(epoch);
        }
        if self.single.len() > MAX_ERASED_EPOCHS {
            self.all_through = self.single.pop_first().max(self.all_through);
        }
    }
}

#[cfg(test)]
mod tests;
