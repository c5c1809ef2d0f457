//! Images: directories below `images/`, one for each name, that appear and disappear whole.
//!
//! An image is copied beside its place and renamed into it. One that is replaced stays on disk under a hidden
//! name while tasks use it: it lies under their copy-on-write layers.

use super::workers::Then;
use super::{Outcome, Server};
use crate::helper::copy;
use crate::helper::verbs::{Answer, ErrorKind, Image, ImageInfo, ImageName, MAX_IMAGES, VerbError};
use crate::sys::explain;
use crate::types::{TaskId, UnixTime};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Imports that run at the same time: more would only fight for the disk.
const MAX_IMPORTS: usize = 4;

/// A replaced image and the tasks that still use it.
#[derive(Debug)]
pub(super) struct Retired {
    path: PathBuf,
    users: BTreeSet<TaskId>,
}

impl Server<'_> {
    pub(super) fn image_path(&self, name: &ImageName) -> PathBuf {
        self.paths.images.join(name.as_str())
    }

    fn users_of(&self, name: &ImageName) -> BTreeSet<TaskId> {
        let uses = |image: &Option<Image>| matches!(image, Some(Image::Named(used)) if used == name);
        self.tasks.iter().filter(|(_, task)| uses(&task.image)).map(|(&id, _)| id).collect()
    }

    fn temporary(&mut self) -> PathBuf {
        self.last_temporary += 1;
        self.paths.images.join(format!(".{}", self.last_temporary))
    }

    pub(super) fn import_image(&mut self, request: u64, name: ImageName, source: &Path) -> Outcome {
        let imports = self.workers.values().filter(|worker| matches!(worker.then, Then::Install { .. })).count();
        if imports >= MAX_IMPORTS {
            return Err(VerbError::new(ErrorKind::Limit, format!("{MAX_IMPORTS} imports run already; try again")));
        }
        if !self.image_path(&name).exists() && self.image_names()?.len() >= MAX_IMAGES {
            return Err(VerbError::new(ErrorKind::Limit, format!("this node has {MAX_IMAGES} images already")));
        }
        let unusable = |text: String| VerbError::new(ErrorKind::Invalid, text);
        let source = source.canonicalize().map_err(|error| unusable(format!("{}: {error}", source.display())))?;
        if !source.is_dir() {
            return Err(unusable(format!("{} is not a directory", source.display())));
        }
        if self.paths.images.starts_with(&source) {
            let text = format!("{} contains Formic's own images: choose another directory", source.display());
            return Err(unusable(text));
        }
        let copy = self.temporary();
        let target = copy.clone();
        self.delegate(Then::Install { request, name, copy }, move || {
            Ok(Answer::Imported(copy::copy_tree(&source, &target)?))
        })?;
        Ok(None)
    }

    /// Puts a finished copy into its place, atomically where the file system can exchange two names.
    pub(super) fn install_image(&mut self, name: &ImageName, copy: &Path) -> Result<(), VerbError> {
        let place = self.image_path(name);
        let failed = |error: io::Error| VerbError::from(explain(format_args!("install the image {name}"), error));
        match renameat2(AT_FDCWD, copy, AT_FDCWD, &place, RenameFlags::RENAME_NOREPLACE) {
            Ok(()) => return Ok(()),
            Err(Errno::EEXIST) => {}
            Err(Errno::EINVAL | Errno::ENOSYS) if !place.exists() => {
                return std::fs::rename(copy, &place).map_err(failed);
            }
            Err(Errno::EINVAL | Errno::ENOSYS) => {}
            Err(error) => return Err(failed(error.into())),
        }
        let old = self.temporary();
        if renameat2(AT_FDCWD, copy, AT_FDCWD, &place, RenameFlags::RENAME_EXCHANGE).is_ok() {
            std::fs::rename(copy, &old).map_err(failed)?;
        } else {
            std::fs::rename(&place, &old).map_err(failed)?;
            std::fs::rename(copy, &place).map_err(failed)?;
        }
        self.retired.push(Retired { path: old, users: self.users_of(name) });
        self.remove_retired();
        Ok(())
    }

    /// A task is gone: images that only it kept go too.
    pub(super) fn release_images(&mut self, task: TaskId) {
        for retired in &mut self.retired {
            retired.users.remove(&task);
        }
        self.remove_retired();
    }

    fn remove_retired(&mut self) {
        let (unused, used) = std::mem::take(&mut self.retired).into_iter().partition(|r| r.users.is_empty());
        self.retired = used;
        let unused: Vec<Retired> = unused;
        for retired in unused {
            // What cannot be removed now is removed at the next start.
            let _ = self.delegate_removal(Then::Nothing, retired.path);
        }
    }

    pub(super) fn list_images(&self) -> Outcome {
        let images = self.image_names()?.into_iter().map(|name| {
            let changed = std::fs::symlink_metadata(self.image_path(&name)).map_or(0, |metadata| metadata.ctime());
            ImageInfo { name, imported_at: UnixTime(u64::try_from(changed).unwrap_or(0)) }
        });
        Ok(Some((Answer::Images(images.take(MAX_IMAGES).collect()), Vec::new())))
    }

    fn image_names(&self) -> Result<Vec<ImageName>, VerbError> {
        let entries = std::fs::read_dir(&self.paths.images)
            .map_err(|error| explain(self.paths.images.display(), error))?
            .collect::<io::Result<Vec<_>>>()?;
        let mut names: Vec<ImageName> =
            entries.iter().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        names.sort();
        Ok(names)
    }

    pub(super) fn remove_image(&mut self, request: u64, name: &ImageName) -> Outcome {
        let place = self.image_path(name);
        if !place.exists() {
            return Err(VerbError::unknown_image(name.as_str()));
        }
        if let Some(task) = self.users_of(name).first() {
            return Err(VerbError::new(ErrorKind::InUse, format!("the image {name} is used by the task {}", task.0)));
        }
        let old = self.temporary();
        std::fs::rename(&place, &old)?;
        self.delegate_removal(Then::Reply(request), old)?;
        Ok(None)
    }
}
