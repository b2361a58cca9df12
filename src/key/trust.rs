//! Whom we trust: with the auth key, whoever listens on tailscaled's socket; with our rights, the
//! `tailscale` command.
//!
//! A path is as good as those who can change what it leads to. Root and the user of this process
//! always can. Anybody else who can is named by the judgements here, which are pure: they go by the
//! [`PathPart`]s of a path and by whose [`Process`] this is. [`path_parts`], [`Process::current`]
//! and [`find_command`] gather that.
//!
//! A group that may write to a directory is no objection: whoever owns it has let that group in.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, FileType, StatxAttributes, StatxFlags, access, statx};
use rustix::io::Errno;

use crate::file_system::read_text;

const ROOT: u32 = 0;

/// Stands for every user who has no number in our user namespace.
const OVERFLOW: u32 = 65534;

/// As many links as the kernel follows.
const MOST_LINKS: u32 = 40;

/// Where a command is looked for if there is no PATH.
const USUAL_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// As whom this process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    pub user: u32,
    pub users: Users,
}

/// Who has a number in the user namespace of a process. What belongs to users outside of it looks as
/// if it were [`OVERFLOW`]'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Users {
    /// Everybody: there is no outside.
    All,
    /// Some, and one of them may be [`OVERFLOW`] himself, as in most containers.
    Some,
    /// Some, and [`OVERFLOW`] is none of them.
    SomeWithoutOverflow,
}

impl Users {
    /// By the `uid_map` of a process.
    fn of(uid_map: &str) -> Self {
        let is_all = |map: &str| map.split_whitespace().eq(["0", "0", "4294967295"]);
        match uid_map {
            // Without user namespaces it is empty.
            map if map.is_empty() || is_all(map) => Self::All,
            map if is_mapped(map, OVERFLOW) => Self::Some,
            _ => Self::SomeWithoutOverflow,
        }
    }
}

impl Process {
    pub fn current() -> Self {
        let users = read_text("/proc/self/uid_map").unwrap_or_default();
        Self { user: rustix::process::geteuid().as_raw(), users: Users::of(&users) }
    }

    /// Whether that is root, of our user namespace at least.
    pub fn is_root(self) -> bool {
        self.user == ROOT
    }

    fn trusts(self, user: u32) -> bool {
        user == ROOT || user == self.user
    }

    /// Whether a part was brought in by whoever made our container: it is, or is on, a mount from
    /// outside. Only the container's own root, or one further out, can mount anything that root can
    /// look into (and, if root has allowed it, whoever uses FUSE).
    fn was_given(self, part: &PathPart) -> bool {
        self.users != Users::All && part.owner == OVERFLOW && part.on_mount_of_overflow
    }
}

/// Whether `user` has a number in the user namespace with this `uid_map`.
fn is_mapped(uid_map: &str, user: u32) -> bool {
    uid_map.lines().any(|line| {
        let numbers: Vec<u64> =
            line.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        let [first, _, count] = numbers[..] else {
            return false;
        };
        (first..first.saturating_add(count)).contains(&user.into())
    })
}

/// A directory or link on the way along a path, or what stands at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPart {
    pub path: PathBuf,
    pub kind: FileType,
    pub owner: u32,
    pub mode: u32,
    /// It stands in a directory in which everybody can put things, such as /tmp.
    pub in_shared_directory: bool,
    /// What was mounted there, or above it last, belongs to [`OVERFLOW`].
    pub on_mount_of_overflow: bool,
}

/// All parts of a path, links and what they lead to included. Only looks, and opens nothing.
pub fn path_parts(path: &Path) -> io::Result<Vec<PathPart>> {
    let mut left = std::path::absolute(path)?;
    let mut here = PathBuf::from("/");
    let mut parts = vec![part(&here, None)?];
    // The directory that we are in; and those above it.
    let mut within = parts.clone();
    let mut links = 0;
    loop {
        let mut steps = left.components();
        let Some(step) = steps.next() else {
            return Ok(parts);
        };
        let mut rest = steps.as_path().to_owned();
        match step {
            Component::RootDir => {
                here = PathBuf::from("/");
                within.truncate(1);
            }
            Component::ParentDir if within.len() > 1 => {
                here.pop();
                within.pop();
            }
            Component::Normal(name) => {
                let next = here.join(name);
                let part = part(&next, within.last())?;
                parts.push(part.clone());
                if part.kind == FileType::Symlink {
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(Errno::LOOP.into());
                    }
                    rest = fs::read_link(&next)?.join(rest);
                } else {
                    here = next;
                    within.push(part);
                }
            }
            _ => {}
        }
        left = rest;
    }
}

fn part(path: &Path, directory: Option<&PathPart>) -> io::Result<PathPart> {
    let metadata = fs::symlink_metadata(path)?;
    let on_mount_of_overflow = match is_mount(path) {
        true => metadata.uid() == OVERFLOW,
        false => directory.is_some_and(|directory| directory.on_mount_of_overflow),
    };
    Ok(PathPart {
        path: path.to_owned(),
        kind: FileType::from_raw_mode(metadata.mode()),
        owner: metadata.uid(),
        mode: metadata.mode(),
        in_shared_directory: directory.is_some_and(|directory| is_world_writable(directory.mode)),
        on_mount_of_overflow,
    })
}

/// Whether something is mounted there. Linux before 5.8 does not tell.
fn is_mount(path: &Path) -> bool {
    let stat = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty());
    stat.is_ok_and(|stat| stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

fn is_world_writable(mode: u32) -> bool {
    mode & 0o002 != 0
}

/// The parts of a path that belong to somebody besides root and the user of `process`, who can
/// therefore change what it leads to; or, if anybody can, how.
///
/// Where one user has a directory that root made, such as a home, this user is named. Where
/// anybody can make one, as in /tmp, what others have made is anybody's.
pub fn parts_of_other_users(
    parts: &[PathPart],
    process: Process,
) -> Result<Vec<&PathPart>, String> {
    let mut of_others = Vec::new();
    for part in parts {
        let (path, owner) = (part.path.display(), part.owner);
        let is_sticky = part.mode & 0o1000 != 0;
        match part.kind {
            FileType::Directory if is_world_writable(part.mode) && !is_sticky => {
                return Err(format!("everybody can write to the directory {path}; chmod o-w it"));
            }
            FileType::RegularFile if is_world_writable(part.mode) => {
                return Err(format!("everybody can write to {path}; chmod o-w it"));
            }
            _ if process.trusts(owner) => {}
            _ if part.in_shared_directory => {
                return Err(format!(
                    "{path} belongs to user {owner}, in a directory where everybody can put it"
                ));
            }
            // What the namespace stands on was there before us.
            _ if process.users == Users::SomeWithoutOverflow && owner == OVERFLOW => {}
            _ => of_others.push(part),
        }
    }
    Ok(of_others)
}

/// Whether the auth key may go to the socket that `parts` lead to and where `listener` listens.
///
/// That is root, ourselves, or a user who has a part of the path (a tailscaled that runs as a
/// user of its own, in a directory that was made for it). And nobody else may be able to put
/// another socket there.
pub fn may_have_key(
    socket: &Path,
    listener: u32,
    parts: &[PathPart],
    process: Process,
) -> Result<(), String> {
    let socket = socket.display();
    let of_others = parts_of_other_users(parts, process)
        .map_err(|why| format!("the auth key is not sent to the socket {socket}: {why}"))?;
    if process.trusts(listener) || of_others.iter().any(|part| part.owner == listener) {
        return Ok(());
    }
    Err(format!(
        "the auth key is not sent to the socket {socket}: user {listener} listens there, \
         who is neither root nor the owner of its directory; is it tailscaled's?"
    ))
}

/// Whether `program`, to which `parts` lead, may run with our rights.
///
/// Who is not root can only harm himself. A command that root names by its path is the one meant,
/// unless anybody can have put it there; one that was found in PATH must be root's, too, or was given
/// to the container that we are in.
pub fn may_run(
    program: &Path,
    named: Named,
    parts: &[PathPart],
    process: Process,
) -> Result<(), String> {
    if !process.is_root() {
        return Ok(());
    }
    let program = program.display();
    let of_others = parts_of_other_users(parts, process)
        .map_err(|why| format!("the tailscale command {program} is not run as root: {why}"))?;
    let of_other = of_others.into_iter().find(|part| !process.was_given(part));
    match (named, of_other) {
        (Named::InPath, Some(part)) => Err(format!(
            "the tailscale command {program}, found in PATH, is not run as root: {} belongs to \
             user {}; if it is meant, name it with --tailscale",
            part.path.display(),
            part.owner
        )),
        _ => Ok(()),
    }
}

/// How a command was named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    ByPath,
    InPath,
}

/// The path of a command: itself, if it's one, or else the first of this name in `search` (the
/// variable PATH) that can be run. Relative and empty entries, which stand for the directory that
/// we happen to be in, are passed over.
pub fn find_command(program: &Path, search: Option<&OsStr>) -> Option<(PathBuf, Named)> {
    if program.as_os_str().as_encoded_bytes().contains(&b'/') {
        return Some((program.to_owned(), Named::ByPath));
    }
    let search = search.unwrap_or(OsStr::new(USUAL_PATH));
    std::env::split_paths(search)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(program))
        .find(|path| path.is_file() && access(path, Access::EXEC_OK).is_ok())
        .map(|path| (path, Named::InPath))
}

/// What the service manager tells its main process about itself.
pub const NOT_PASSED_ON: [&str; 12] = [
    "FDSTORE",
    "JOURNAL_STREAM",
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "MEMORY_PRESSURE_WATCH",
    "MEMORY_PRESSURE_WRITE",
    "NOTIFY_SOCKET",
    "SYSTEMD_EXEC_PID",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];

/// Whether an environment variable of ours is passed on to the `tailscale` command.
///
/// All are, since whoever sets ours may do so: PATH, proxies and certificates for the exchange of
/// an OAuth client secret, Tailscale's own TS_…. But not what the service manager tells its main
/// process about itself, and not our options.
pub fn is_passed_on(variable: &OsStr) -> bool {
    let name = variable.to_string_lossy();
    !NOT_PASSED_ON.contains(&name.as_ref()) && !name.starts_with("TAILSCALE_AUTOCONNECT_")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    const ROOTS: Process = Process { user: ROOT, users: Users::All };
    const ALICES: Process = Process { user: 1000, users: Users::All };
    const MALLORY: u32 = 1001;
    const SERVICE: u32 = 997;

    /// Owners and modes of a path's parts.
    type Owned<'a> = &'a [(u32, u32)];

    /// The parts of a path, from pairs of owner and mode; the last one is of this kind.
    fn path(kind: FileType, parts: Owned) -> Vec<PathPart> {
        let mut path = PathBuf::from("/");
        let mut in_shared_directory = false;
        let last = parts.len() - 1;
        let parts = parts.iter().enumerate().map(|(nth, &(owner, mode))| {
            if nth > 0 {
                path.push(format!("step{nth}"));
            }
            let kind = if nth == last { kind } else { FileType::Directory };
            let part = PathPart {
                path: path.clone(),
                kind,
                owner,
                mode,
                in_shared_directory,
                on_mount_of_overflow: false,
            };
            in_shared_directory = is_world_writable(mode);
            part
        });
        parts.collect()
    }

    fn to_socket(listener: u32, parts: Owned, process: Process) -> Result<(), String> {
        let socket = Path::new("/the/socket");
        may_have_key(socket, listener, &path(FileType::Socket, parts), process)
    }

    const ETC: (u32, u32) = (ROOT, 0o755);
    const TMP: (u32, u32) = (ROOT, 0o1777);

    #[test]
    fn the_sockets_that_people_have_get_the_key() {
        let cases: [(&str, u32, Owned, Process); 9] = [
            ("Debian's and NixOS's", ROOT, &[ETC, ETC, ETC, (ROOT, 0o666)], ROOTS),
            ("the same for the operator", ROOT, &[ETC, ETC, ETC, (ROOT, 0o666)], ALICES),
            ("alice's own", 1000, &[ETC, ETC, (1000, 0o700), (1000, 0o666)], ALICES),
            ("alice's own in /tmp", 1000, &[ETC, TMP, (1000, 0o755), (1000, 0o666)], ALICES),
            ("a container's in /tmp", ROOT, &[ETC, TMP, (ROOT, 0o666)], ROOTS),
            (
                "a daemon's with a user",
                SERVICE,
                &[ETC, ETC, (SERVICE, 0o755), (SERVICE, 0o666)],
                ROOTS,
            ),
            (
                "the same for the operator",
                SERVICE,
                &[ETC, ETC, (SERVICE, 0o755), (SERVICE, 0o666)],
                ALICES,
            ),
            ("a group's", ROOT, &[ETC, ETC, (ROOT, 0o2775), (ROOT, 0o660)], ROOTS),
            ("socket activation", ROOT, &[ETC, ETC, ETC, (SERVICE, 0o660)], ROOTS),
        ];
        for (whose, listener, parts, process) in cases {
            assert_eq!(to_socket(listener, parts, process), Ok(()), "{whose}");
        }
    }

    #[test]
    fn a_socket_that_others_made_or_can_replace_does_not_get_the_key() {
        let cases: [(&str, u32, Owned, Process, &str); 7] = [
            (
                "in /tmp",
                MALLORY,
                &[ETC, TMP, (MALLORY, 0o666)],
                ROOTS,
                "where everybody can put it",
            ),
            (
                "below /tmp",
                MALLORY,
                &[ETC, TMP, (MALLORY, 0o755), (MALLORY, 0o666)],
                ROOTS,
                "where everybody can put it",
            ),
            (
                "below /tmp, root's",
                ROOT,
                &[ETC, TMP, (MALLORY, 0o755), (ROOT, 0o666)],
                ROOTS,
                "where everybody can put it",
            ),
            (
                "left open",
                ROOT,
                &[ETC, (ROOT, 0o777), (ROOT, 0o666)],
                ROOTS,
                "everybody can write to the directory /step1",
            ),
            (
                "a stolen name",
                MALLORY,
                &[ETC, ETC, (ROOT, 0o666)],
                ROOTS,
                "user 1001 listens there",
            ),
            (
                "of another than the owner",
                MALLORY,
                &[ETC, (SERVICE, 0o755), (SERVICE, 0o666)],
                ROOTS,
                "user 1001 listens there",
            ),
            (
                "against a plain user",
                MALLORY,
                &[ETC, TMP, (MALLORY, 0o666)],
                ALICES,
                "where everybody can put it",
            ),
        ];
        for (which, listener, parts, process, why) in cases {
            let refusal = to_socket(listener, parts, process).expect_err(which);
            assert!(refusal.starts_with("the auth key is not sent to the socket /the/socket: "));
            assert!(refusal.contains(why), "{which}: {refusal}");
        }
    }

    #[test]
    fn what_a_namespace_stands_on_is_no_objection_but_a_listener_outside_is() {
        let parts = [(OVERFLOW, 0o755), (OVERFLOW, 0o1777), (ROOT, 0o755), (ROOT, 0o666)];
        let inside = Process { user: ROOT, users: Users::SomeWithoutOverflow };
        assert_eq!(to_socket(ROOT, &parts, inside), Ok(()));
        assert!(to_socket(OVERFLOW, &parts, inside).is_err());
        assert!(
            parts_of_other_users(&path(FileType::Socket, &parts[..3]), ROOTS)
                .is_ok_and(|all| all.len() == 2)
        );
        let theirs = [(OVERFLOW, 0o755), (OVERFLOW, 0o1777), (OVERFLOW, 0o666)];
        assert!(to_socket(ROOT, &theirs, inside).is_err());
    }

    #[test]
    fn a_uid_map_says_who_is_inside() {
        let all = "         0          0 4294967295\n";
        assert!(is_mapped(all, OVERFLOW));
        assert!(!is_mapped("0 1000 1\n", OVERFLOW));
        assert!(is_mapped("0 1000 1\n1 100000 65536\n", OVERFLOW));
        assert!(!is_mapped("0 1000 1\n1 100000 65533\n", OVERFLOW));
        assert!(!is_mapped("", OVERFLOW));

        assert_eq!(Users::of(all), Users::All);
        assert_eq!(Users::of(""), Users::All);
        assert_eq!(Users::of("0 1000 1\n"), Users::SomeWithoutOverflow);
        assert_eq!(Users::of("0 100000 65536\n"), Users::Some);
        assert_eq!(Users::of("0 0 65536\n"), Users::Some);
    }

    #[test]
    fn a_command_that_was_mounted_into_a_container_from_outside_is_run() {
        let program = |parts: &[(u32, u32, bool)], users| {
            let owned: Vec<_> = parts.iter().map(|(owner, mode, _)| (*owner, *mode)).collect();
            let mut path = path(FileType::RegularFile, &owned);
            for (part, (_, _, on_mount)) in path.iter_mut().zip(parts) {
                part.on_mount_of_overflow = *on_mount;
            }
            let process = Process { user: ROOT, users };
            may_run(Path::new("/x/tailscale"), Named::InPath, &path, process)
        };
        let root = (ROOT, 0o755, false);
        let file = [root, root, root, (OVERFLOW, 0o755, true)];
        let store = [root, root, (OVERFLOW, 0o1775, true), (OVERFLOW, 0o555, true)];
        let nobodys = [root, root, (OVERFLOW, 0o755, false), (OVERFLOW, 0o755, false)];
        let nobodys_file = [root, root, root, (OVERFLOW, 0o755, false)];
        let others = [root, root, (OVERFLOW, 0o755, true), (MALLORY, 0o755, true)];
        let open = [root, root, root, (OVERFLOW, 0o757, true)];
        for given in [&file, &store] {
            assert_eq!(program(given, Users::Some), Ok(()));
            // Where everybody has a number, 65534 is nobody but himself.
            assert!(program(given, Users::All).is_err());
        }
        for not_given in [&nobodys, &nobodys_file, &others, &open] {
            assert!(program(not_given, Users::Some).is_err(), "{not_given:?}");
        }
    }

    #[test]
    fn a_mount_is_seen_as_one() {
        assert!(is_mount(Path::new("/proc")));
        assert!(!is_mount(Path::new("/proc/self")));
        assert!(!is_mount(Path::new("/none")));
    }

    #[test]
    fn a_command_found_in_path_must_be_roots_under_root() {
        let run = |named, parts: Owned, process| {
            may_run(Path::new("/x/tailscale"), named, &path(FileType::RegularFile, parts), process)
        };
        let program = (ROOT, 0o755);
        let store = (ROOT, 0o1775);
        let nix = [ETC, ETC, store, (ROOT, 0o555), (ROOT, 0o555)];
        let debian = [ETC, ETC, ETC, program];
        let staff = [ETC, ETC, ETC, (ROOT, 0o2775), program];
        for parts in [&nix[..], &debian, &staff] {
            assert_eq!(run(Named::InPath, parts, ROOTS), Ok(()));
        }
        let homes = [ETC, ETC, (MALLORY, 0o755), (MALLORY, 0o755)];
        let refusal = run(Named::InPath, &homes, ROOTS).unwrap_err();
        assert!(
            refusal
                .contains("found in PATH, is not run as root: /step1/step2 belongs to user 1001")
        );
        assert_eq!(run(Named::ByPath, &homes, ROOTS), Ok(()));
        assert_eq!(run(Named::InPath, &homes, ALICES), Ok(()));
        for named in [Named::ByPath, Named::InPath] {
            let in_tmp = [ETC, TMP, (MALLORY, 0o755)];
            assert!(run(named, &in_tmp, ROOTS).is_err());
            assert!(run(named, &[ETC, ETC, (ROOT, 0o777)], ROOTS).is_err());
            assert!(run(named, &[ETC, (ROOT, 0o777), program], ROOTS).is_err());
            assert_eq!(run(named, &in_tmp, ALICES), Ok(()));
        }
    }

    /// A directory of the test's own, removed at its end.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let name = format!("trust-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir(&path).unwrap();
            Self(path.canonicalize().unwrap())
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_parts_of_a_path_are_those_of_the_links_on_it_too() {
        let directory = Directory::new("parts");
        let base = &directory.0;
        fs::create_dir(base.join("real")).unwrap();
        fs::write(base.join("real/file"), "").unwrap();
        symlink(base.join("real"), base.join("absolute")).unwrap();
        symlink("absolute/../real/./file", base.join("relative")).unwrap();
        let found: Vec<_> = path_parts(&base.join("relative"))
            .unwrap()
            .into_iter()
            .filter_map(|part| Some((part.path.strip_prefix(base).ok()?.to_owned(), part.kind)))
            .collect();
        let expected = [
            ("", FileType::Directory),
            ("relative", FileType::Symlink),
            ("absolute", FileType::Symlink),
            ("", FileType::Directory),
            ("real", FileType::Directory),
            ("real", FileType::Directory),
            ("real/file", FileType::RegularFile),
        ];
        assert_eq!(found, expected.map(|(path, kind)| (path.into(), kind)));

        symlink("loop", base.join("loop")).unwrap();
        let error = path_parts(&base.join("loop")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::LOOP.raw_os_error()));
        let missing = path_parts(&base.join("none/file")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_stands_where_everybody_can_put_it_is_marked() {
        let directory = Directory::new("marked");
        let shared = directory.0.join("shared");
        fs::create_dir(&shared).unwrap();
        fs::write(shared.join("file"), "").unwrap();
        let marked =
            || path_parts(&shared.join("file")).unwrap().pop().unwrap().in_shared_directory;
        assert!(!marked());
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o1777)).unwrap();
        assert!(marked());
    }

    #[test]
    fn a_command_is_the_first_in_path_that_can_be_run() {
        let directory = Directory::new("path");
        let base = &directory.0;
        for (name, mode) in [("plain", 0o644), ("first", 0o755), ("second", 0o755)] {
            fs::create_dir(base.join(name)).unwrap();
            let file = base.join(name).join("command");
            fs::write(&file, "").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::create_dir_all(base.join("folder/command")).unwrap();
        let search = |entries: &[&str]| {
            let entries = entries.iter().map(|name| match name.strip_prefix('@') {
                Some(name) => base.join(name),
                None => PathBuf::from(name),
            });
            let search = std::env::join_paths(entries).unwrap();
            find_command(Path::new("command"), Some(&search))
        };
        let first = Some((base.join("first/command"), Named::InPath));
        assert_eq!(search(&["@none", "@folder", "@plain", "@first", "@second"]), first);
        assert_eq!(search(&["@plain", ""]), None);
        // The tests run in the package's directory.
        assert_eq!(find_command(Path::new("run.sh"), Some(OsStr::new("tests:./tests"))), None);
        for path in ["/usr/bin/tailscale", "./tailscale", "bin/tailscale"] {
            let path = PathBuf::from(path);
            assert_eq!(find_command(&path, None), Some((path.clone(), Named::ByPath)));
        }
    }

    #[test]
    fn the_command_gets_our_environment_but_for_what_is_ours_alone() {
        for name in
            ["PATH", "HOME", "HTTPS_PROXY", "no_proxy", "SSL_CERT_FILE", "TS_DEBUG_UP", "LANG"]
        {
            assert!(is_passed_on(OsStr::new(name)), "{name}");
        }
        for name in [
            "NOTIFY_SOCKET",
            "LISTEN_FDS",
            "JOURNAL_STREAM",
            "WATCHDOG_USEC",
            "TAILSCALE_AUTOCONNECT_AUTHKEY_FILE",
        ] {
            assert!(!is_passed_on(OsStr::new(name)), "{name}");
        }
    }
}
