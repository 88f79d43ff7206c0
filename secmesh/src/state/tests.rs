//! Tests of the state directory.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn writes_whole_files_with_the_mode_asked_for() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("f");
    write_atomic(&path, b"one", 0o600).unwrap();
    write_atomic(&path, b"two", 0o640).unwrap();
    assert_eq!(read_capped(&path, 3).unwrap(), b"two");
    assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o640);
    assert_eq!(
        std::fs::read_dir(temp.path()).unwrap().count(),
        1,
        "no leftovers"
    );
}

#[test]
fn a_failed_write_leaves_the_old_file() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("d");
    std::fs::create_dir(&path).unwrap();
    std::fs::create_dir(path.join("x")).unwrap();
    assert!(
        write_atomic(&path, b"x", 0o600).is_err(),
        "a directory is in the way"
    );
    assert_eq!(
        std::fs::read_dir(temp.path()).unwrap().count(),
        1,
        "no leftovers"
    );
}

#[test]
fn reading_is_capped() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("f");
    write_atomic(&path, &[7; 100], 0o600).unwrap();
    assert!(matches!(
        read_capped(&path, 99),
        Err(StateError::TooLarge { max: 99, .. })
    ));
    assert_eq!(read_capped(&path, 100).unwrap().len(), 100);
    assert!(matches!(
        read_capped(Path::new("/dev/zero"), 10),
        Err(StateError::TooLarge { .. })
    ));
    assert!(read_capped_text(&path, 100).is_ok());
    write_atomic(&path, &[0xff], 0o600).unwrap();
    assert!(read_capped_text(&path, 100).is_err());
}

#[test]
fn refuses_a_directory_others_can_write_to() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("a/b/state");
    assert!(matches!(StateDir::open(&path), Err(StateError::Missing(_))));
    StateDir::create(&path).unwrap();
    assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o700);
    StateDir::create(&path).unwrap();
    for mode in [0o770, 0o702, 0o1777] {
        chmod(&path, mode);
        let error = StateDir::create(&path).unwrap_err();
        assert!(matches!(error, StateError::WritableByOthers { .. }));
        assert!(error.to_string().contains("chmod go-w"), "{error}");
    }
    let file = temp.path().join("file");
    write_atomic(&file, b"", 0o600).unwrap();
    assert!(matches!(
        StateDir::create(&file),
        Err(StateError::NotADirectory(_))
    ));
}

#[test]
fn refuses_a_secret_others_can_read() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("k");
    write_atomic(&path, b"secret", PRIVATE).unwrap();
    assert_eq!(read_secret(&path).unwrap(), b"secret");
    for mode in [0o640, 0o604, 0o620] {
        chmod(&path, mode);
        assert!(
            matches!(read_secret(&path), Err(StateError::SecretExposed { .. })),
            "{mode:o}"
        );
    }
    chmod(&path, 0o600);
    let link = temp.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(
        matches!(read_secret(&link), Err(StateError::Io { .. })),
        "symbolic links are not followed"
    );
    write_atomic(&path, &[0; 5000], PRIVATE).unwrap();
    assert!(matches!(
        read_secret(&path),
        Err(StateError::TooLarge { .. })
    ));
}

#[test]
fn one_agent_at_a_time_and_leftovers_go() {
    let temp = tempfile::tempdir().unwrap();
    let dir = StateDir::create(&temp.path().join("s")).unwrap();
    // 2^22 is the highest process id Linux gives out.
    let left = dir.file(&format!(".x{TEMP_MARK}{}-0", 1 << 22));
    write_atomic(&left, b"half", PRIVATE).unwrap();
    let alive = dir.file(&format!(".x{TEMP_MARK}{}-0", std::process::id()));
    write_atomic(&alive, b"half", PRIVATE).unwrap();
    let held = dir.lock().unwrap();
    assert!(!left.exists());
    assert!(alive.exists(), "a live process may be about to rename it");
    let error = dir.lock().unwrap_err();
    assert!(
        matches!(error, StateError::Locked { pid: Some(pid), .. } if pid == std::process::id()),
        "{error}"
    );
    drop(held);
    dir.lock().unwrap();
}

#[test]
fn json_files_carry_their_version() {
    let temp = tempfile::tempdir().unwrap();
    let dir = StateDir::create(&temp.path().join("s")).unwrap();
    assert_eq!(dir.read_json::<Vec<u8>>("x.json", 1).unwrap(), None);
    dir.write_json("x.json", 1, &vec![1u8, 2]).unwrap();
    assert_eq!(
        dir.read_json::<Vec<u8>>("x.json", 1).unwrap(),
        Some(vec![1, 2])
    );
    assert!(matches!(
        dir.read_json::<Vec<u8>>("x.json", 2),
        Err(StateError::Version {
            found: 1,
            known: 2,
            ..
        })
    ));
    assert!(matches!(
        dir.read_json::<String>("x.json", 1),
        Err(StateError::Damaged { .. })
    ));
    dir.write("x.json", b"{").unwrap();
    assert!(matches!(
        dir.read_json::<String>("x.json", 1),
        Err(StateError::Damaged { .. })
    ));
}
