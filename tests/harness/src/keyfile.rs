//! An auth key file laid out as agenix lays it out: generations in `agenix.d`, and a link to the
//! one that counts.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tempfile::TempDir;

const NAME: &str = "tailscale-token";

/// `DIR/agenix/tailscale-token`, where `agenix` links to `DIR/agenix.d/N`.
pub struct KeyFile {
    dir: TempDir,
    path: PathBuf,
    now: Mutex<Now>,
}

struct Now {
    generation: u32,
    mode: u32,
}

impl KeyFile {
    /// A file that holds `key`, in generation 1, with mode 0400.
    pub fn new(key: impl AsRef<[u8]>) -> Self {
        let file = Self::absent();
        file.swap(key);
        file
    }

    /// No file yet, and no generation either, as early in a boot.
    pub fn absent() -> Self {
        let dir = crate::process::open_temp_dir("keyfile-");
        let path = dir.path().join("agenix").join(NAME);
        let now = Mutex::new(Now { generation: 0, mode: 0o400 });
        Self { dir, path, now }
    }

    /// The path to hand to the program: through the link.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder that holds everything.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Replaces the file within its generation, at once (by a rename).
    pub fn write(&self, key: impl AsRef<[u8]>) {
        let now = self.now();
        if now.generation == 0 {
            drop(now);
            self.swap(key);
        } else {
            self.put(&self.generation(now.generation), now.mode, key.as_ref());
        }
    }

    /// Writes as a careless writer does: the file is emptied first, then filled. It must exist.
    pub fn write_in_place(&self, key: impl AsRef<[u8]>) {
        let now = self.now();
        check(fs::set_permissions(&self.path, Permissions::from_mode(0o600)));
        check(fs::write(&self.path, key));
        check(fs::set_permissions(&self.path, Permissions::from_mode(now.mode)));
    }

    /// Makes the next generation with this key, turns the link to it at once and removes the old
    /// generation, as a `nixos-rebuild switch` does.
    pub fn swap(&self, key: impl AsRef<[u8]>) {
        let mut now = self.now();
        let old = self.generation(now.generation);
        now.generation += 1;
        let new = self.generation(now.generation);
        check(fs::create_dir_all(&new));
        self.put(&new, now.mode, key.as_ref());

        let link = self.dir.path().join("agenix.new");
        check(symlink(&new, &link));
        check(fs::rename(&link, self.dir.path().join("agenix")));
        if old.is_dir() {
            check(fs::remove_dir_all(old));
        }
    }

    /// Removes the file; the link and the generation stay.
    pub fn remove(&self) {
        let _now = self.now();
        check(fs::remove_file(&self.path));
    }

    /// Sets the mode of the file, now and for those written later.
    pub fn mode(&self, mode: u32) {
        let mut now = self.now();
        now.mode = mode;
        if self.path.exists() {
            check(fs::set_permissions(&self.path, Permissions::from_mode(mode)));
        }
    }

    fn now(&self) -> std::sync::MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn generation(&self, number: u32) -> PathBuf {
        self.dir.path().join("agenix.d").join(number.to_string())
    }

    fn put(&self, generation: &Path, mode: u32, key: &[u8]) {
        let temporary = generation.join(".new");
        check(fs::write(&temporary, key));
        check(fs::set_permissions(&temporary, Permissions::from_mode(mode)));
        check(fs::rename(&temporary, generation.join(NAME)));
    }
}

fn check(result: std::io::Result<()>) {
    result.unwrap_or_else(|error| panic!("cannot change the key file: {error}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(file: &KeyFile) -> String {
        fs::read_to_string(file.path()).unwrap()
    }

    #[test]
    fn a_swap_moves_the_link_and_removes_the_old_generation() {
        let file = KeyFile::absent();
        assert!(!file.path().exists());
        file.write("first");
        assert_eq!(read(&file), "first");
        file.swap("second");
        assert_eq!(read(&file), "second");
        let link = fs::read_link(file.dir().join("agenix")).unwrap();
        assert_eq!(link, file.dir().join("agenix.d/2"));
        assert!(!file.dir().join("agenix.d/1").exists());
    }

    #[test]
    fn the_mode_is_kept_by_every_way_of_writing() {
        let mode = |file: &KeyFile| fs::metadata(file.path()).unwrap().permissions().mode() & 0o777;
        let file = KeyFile::new("key");
        assert_eq!(mode(&file), 0o400);
        file.mode(0o644);
        file.write("key");
        file.write_in_place("other");
        assert_eq!((read(&file).as_str(), mode(&file)), ("other", 0o644));
        file.swap("key");
        assert_eq!(mode(&file), 0o644);
        file.remove();
        assert!(!file.path().exists());
    }
}
