//! The ways of the store to its disk, where the tests let it fail.

use redb::StorageBackend;
use redb::backends::FileBackend;
use std::fs::File;
use std::path::Path;

/// Before a step that changes a file in `directory`.
#[cfg(not(test))]
pub(super) fn step(_directory: &Path) -> std::io::Result<()> {
    Ok(())
}

/// How a fresh database in `directory` is read and written.
#[cfg(not(test))]
pub(super) fn backend(_directory: &Path, file: File) -> Result<impl StorageBackend, redb::DatabaseError> {
    FileBackend::new(file)
}

#[cfg(test)]
pub(super) use failing::{backend, step};

/// Disks that fail when a test says so.
#[cfg(test)]
pub(super) mod failing {
    use super::{File, FileBackend, Path, StorageBackend};
    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};
    use std::collections::BTreeMap;
    use std::io;
    use std::path::PathBuf;
    use std::sync::{Arc, Mutex, PoisonError};

    /// A disk that fails from some step on, until it is mended.
    #[derive(Debug, Default)]
    struct Disk {
        /// Steps that still succeed; `None`: all of them.
        left: Option<u64>,
        failed: u64,
        /// What fails is the power: parts of what was not synced get to the disk, drawn by this seed.
        torn: Option<u64>,
    }

    /// What a disk writes whole or not at all.
    const SECTOR_BYTES: usize = 512;

    static DISKS: Mutex<BTreeMap<PathBuf, Disk>> = Mutex::new(BTreeMap::new());

    fn with<T>(directory: &Path, act: impl FnOnce(&mut Disk) -> T) -> T {
        act(DISKS.lock().unwrap_or_else(PoisonError::into_inner).entry(directory.to_owned()).or_default())
    }

    /// The disk of a store takes so many steps, and then none until it is mended.
    pub(in super::super) fn fail_after(directory: &Path, steps: u64) {
        with(directory, |disk| *disk = Disk { left: Some(steps), ..Disk::default() });
    }

    /// The power fails after so many steps.
    pub(in super::super) fn cut_after(directory: &Path, steps: u64, seed: u64) {
        with(directory, |disk| *disk = Disk { left: Some(steps), failed: 0, torn: Some(seed) });
    }

    /// All goes well from now on; gives how many steps failed.
    pub(in super::super) fn mend(directory: &Path) -> u64 {
        with(directory, |disk| std::mem::take(disk).failed)
    }

    pub(in super::super) fn step(directory: &Path) -> io::Result<()> {
        with(directory, |disk| match &mut disk.left {
            None => Ok(()),
            Some(0) => {
                disk.failed += 1;
                Err(io::ErrorKind::StorageFull.into())
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        })
    }

    /// As after a failed `fsync` of Linux: what was written and not synced is still read, counts as clean, and never
    /// gets to the file.
    #[derive(Debug)]
    struct Backend {
        directory: Arc<Path>,
        file: FileBackend,
        cache: Mutex<Cache>,
    }

    /// What is read, and the writes that the file lacks.
    #[derive(Debug, Default)]
    struct Cache {
        seen: Vec<u8>,
        dirty: Vec<(u64, Vec<u8>)>,
    }

    pub(in super::super) fn backend(
        directory: &Path,
        file: File,
    ) -> Result<impl StorageBackend + use<>, redb::DatabaseError> {
        Ok(Backend { directory: directory.into(), file: FileBackend::new(file)?, cache: Mutex::default() })
    }

    impl Backend {
        /// One step, or what is left of the writes before it when the power fails.
        fn step(&self, cache: &mut Cache) -> io::Result<()> {
            let stepped = step(&self.directory);
            let torn = with(&self.directory, |disk| disk.torn).filter(|_| stepped.is_err());
            if let Some(seed) = torn {
                self.tear(cache, &mut StdRng::seed_from_u64(seed))?;
            }
            stepped
        }

        /// Each sector of what was not synced is on the disk or not.
        fn tear(&self, cache: &mut Cache, rng: &mut StdRng) -> io::Result<()> {
            if rng.random_bool(0.5) {
                self.file.set_len(cache.seen.len() as u64)?;
            }
            let length = self.file.len()?;
            for (offset, data) in std::mem::take(&mut cache.dirty) {
                for (number, sector) in data.chunks(SECTOR_BYTES).enumerate() {
                    let offset = offset + (number * SECTOR_BYTES) as u64;
                    if rng.random_bool(0.5) && offset + sector.len() as u64 <= length {
                        self.file.write(offset, sector)?;
                    }
                }
            }
            Ok(())
        }

        fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
            self.cache.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    impl StorageBackend for Backend {
        fn len(&self) -> Result<u64, io::Error> {
            Ok(self.cache().seen.len() as u64)
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
            let cache = self.cache();
            let from = usize::try_from(offset).unwrap_or(usize::MAX);
            let seen = cache.seen.get(from..).and_then(|seen| seen.get(..out.len()));
            out.copy_from_slice(seen.ok_or(io::ErrorKind::UnexpectedEof).map_err(io::Error::from)?);
            Ok(())
        }

        fn set_len(&self, len: u64) -> Result<(), io::Error> {
            let mut cache = self.cache();
            self.step(&mut cache)?;
            cache.seen.resize(usize::try_from(len).unwrap_or(usize::MAX), 0);
            Ok(())
        }

        fn sync_data(&self) -> Result<(), io::Error> {
            let mut cache = self.cache();
            if let Err(error) = self.step(&mut cache) {
                cache.dirty.clear();
                return Err(error);
            }
            let dirty = std::mem::take(&mut cache.dirty);
            self.file.set_len(cache.seen.len() as u64)?;
            for (offset, data) in dirty {
                self.file.write(offset, &data)?;
            }
            self.file.sync_data()
        }

        fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
            let mut cache = self.cache();
            self.step(&mut cache)?;
            let from = usize::try_from(offset).unwrap_or(usize::MAX);
            let place = cache.seen.get_mut(from..).and_then(|seen| seen.get_mut(..data.len()));
            place.ok_or(io::ErrorKind::UnexpectedEof).map_err(io::Error::from)?.copy_from_slice(data);
            cache.dirty.push((offset, data.to_vec()));
            Ok(())
        }
    }
}
