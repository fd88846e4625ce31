//! Builds the XDP program, byte for byte the same wherever the checkout lies.
//!
//! `ebpf/program` is a workspace of its own with its own `Cargo.lock`: what the rest of the
//! repository depends on cannot change the object. Paths (of the checkout, of cargo's and of
//! rustc's home) are mapped to fixed names, flags and profiles from outside are ignored, and the
//! compiler and the linker are exactly those named here.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail, ensure};

/// Rebuilds `ebpf/prebuilt/headgate.bpf.o`; with `check`, builds it elsewhere and compares.
///
/// Fails when a tool is missing, when the build fails, and when `check` finds other bytes.
pub fn build(check: bool) -> Result<()> {
    let nightly = toolchain().map_err(|missing| anyhow!(missing))?;
    let checkout = checkout()?;
    let prebuilt = checkout.join(PREBUILT);
    if check {
        let target = Scratch::new()?;
        let object = compile(&checkout, &target.0, nightly)?;
        return compare(&object, &prebuilt);
    }
    let object = compile(&checkout, &checkout.join("target/ebpf"), nightly)?;
    if fs::read(&prebuilt).is_ok_and(|bytes| bytes == object) {
        return Ok(());
    }
    if let Some(folder) = prebuilt.parent() {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    fs::write(&prebuilt, object).with_context(|| format!("cannot write {}", prebuilt.display()))
}

/// Whether everything is there that [`build`] needs; if not, what to install.
pub fn toolchain_ready() -> Result<(), String> {
    toolchain().map(|_| ())
}

/// The name by which rustup knows the compiler.
fn toolchain() -> Result<&'static str, String> {
    let nightly = NIGHTLIES
        .into_iter()
        .find(|name| version(nightly(name, "rustc")).as_deref() == Some(RUSTC))
        .ok_or_else(|| missing_rustc(version(nightly("nightly", "rustc"))))?;
    let sources = sysroot(nightly)
        .map_err(|error| format!("{error:#}"))?
        .join("lib/rustlib/src/rust/library/core/src/lib.rs");
    if !sources.exists() {
        return Err(format!(
            "the sources of Rust's core library are missing ({}); install them: rustup component \
             add rust-src --toolchain {nightly}",
            sources.display()
        ));
    }
    match version(Command::new("bpf-linker")) {
        Some(found) if found == LINKER => Ok(nightly),
        found => Err(format!(
            "the XDP program is linked by {LINKER}, and {} is installed; install it: cargo install \
             {} --locked",
            found.as_deref().unwrap_or("none"),
            LINKER.replace(' ', "@"),
        )),
    }
}

fn missing_rustc(found: Option<String>) -> String {
    format!(
        "the XDP program is compiled by {RUSTC}, and nightly is {}; install it: rustup toolchain \
         install {} --profile minimal --component rust-src",
        found.as_deref().unwrap_or("not installed"),
        NIGHTLIES[0],
    )
}

/// Compiles the program below the folder `target` and returns the object.
fn compile(checkout: &Path, target: &Path, toolchain: &str) -> Result<Vec<u8>> {
    let mut cargo = nightly(toolchain, "cargo");
    for (name, _) in env::vars_os().filter(|(name, _)| changes_the_build(name)) {
        cargo.env_remove(name);
    }
    let status = cargo
        .args(["build", "--release", "--locked", "--quiet"])
        .args(["-Z", "build-std=core", "--target", TARGET, "--target-dir"])
        .arg(target)
        .env("CARGO_ENCODED_RUSTFLAGS", flags(checkout, target, &sysroot(toolchain)?)?)
        .current_dir(checkout.join(PROGRAM))
        .status()
        .context("cannot run rustup; it comes with rustup.rs")?;
    ensure!(status.success(), "the XDP program does not build ({status})");
    let object = target.join(TARGET).join("release/headgate");
    fs::read(&object).with_context(|| format!("cannot read {}", object.display()))
}

/// rustc's flags, separated as `CARGO_ENCODED_RUSTFLAGS` wants them.
fn flags(checkout: &Path, target: &Path, sysroot: &Path) -> Result<OsString> {
    // Where several prefixes fit, rustc takes the last.
    let prefixes = [
        (checkout, "/headgate"),
        (target, "/target"),
        (&cargo_home()?, "/cargo"),
        (sysroot, "/rust"),
    ];
    let mut flags = OsString::from(FLAGS.join("\x1f"));
    for (from, to) in prefixes {
        flags.push("\x1f--remap-path-prefix=");
        flags.push(from);
        flags.push("=");
        flags.push(to);
    }
    Ok(flags)
}

/// Whether the environment variable `name` could give the object other bytes.
fn changes_the_build(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    INHERITED_NEVER.iter().any(|prefix| name.starts_with(prefix))
}

fn compare(object: &[u8], prebuilt: &Path) -> Result<()> {
    let expected =
        fs::read(prebuilt).with_context(|| format!("cannot read {}", prebuilt.display()))?;
    if object == expected {
        return Ok(());
    }
    let first = object.iter().zip(&expected).take_while(|(built, kept)| built == kept).count();
    bail!(
        "{} does not come from these sources: {} bytes built, {} bytes checked in, the first \
         difference at {first}. After a change below ebpf/, run `cargo xtask ebpf` and commit the \
         object; with no change, the core library's sources in the toolchain may be of another \
         release",
        prebuilt.display(),
        object.len(),
        expected.len(),
    )
}

/// The repository's root, without symbolic links, as cargo would name it.
fn checkout() -> Result<PathBuf> {
    // What cargo says now: a checkout that moved takes its old binaries along.
    let package = env::var_os("CARGO_MANIFEST_DIR");
    let package = package.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let root = Path::new(&package).join("..");
    root.canonicalize().with_context(|| format!("cannot find {}", root.display()))
}

fn cargo_home() -> Result<PathBuf> {
    if let Some(home) = env::var_os("CARGO_HOME") {
        return Ok(PathBuf::from(home));
    }
    let home = env::home_dir().context("neither CARGO_HOME nor HOME is set")?;
    Ok(home.join(".cargo"))
}

fn sysroot(toolchain: &str) -> Result<PathBuf> {
    let output = nightly(toolchain, "rustc")
        .args(["--print", "sysroot"])
        .output()
        .context("cannot run rustup; it comes with rustup.rs")?;
    ensure!(output.status.success(), "rustc of {toolchain} does not tell its sysroot");
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim_end()))
}

/// `tool` of `toolchain`, whatever toolchain runs this program.
fn nightly(toolchain: &str, tool: &str) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", toolchain, tool]);
    command
}

/// What `command` prints about its version, if it runs at all.
fn version(mut command: Command) -> Option<String> {
    let output = command.arg("--version").stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim_end().to_owned())
}

/// A folder that goes away with its owner.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Scratch> {
        let path = env::temp_dir().join(format!("headgate-ebpf-{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let path = path.canonicalize()?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Left over in the temporary folder at worst.
        let _ = fs::remove_dir_all(&self.0);
    }
}

const RUSTC: &str = "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)";
/// The names under which rustup may know [`RUSTC`].
const NIGHTLIES: [&str; 2] = ["nightly-2026-05-20", "nightly"];
/// The last release that links with rustc's own LLVM.
const LINKER: &str = "bpf-linker 0.10.3";
const TARGET: &str = "bpfel-unknown-none";
const PROGRAM: &str = "ebpf/program";
const PREBUILT: &str = "ebpf/prebuilt/headgate.bpf.o";
const FLAGS: [&str; 3] = ["-Cdebuginfo=2", "-Clink-arg=--btf", "-Clinker=bpf-linker"];
const INHERITED_NEVER: [&str; 9] = [
    "CARGO_BUILD_",
    "CARGO_ENCODED_",
    "CARGO_INCREMENTAL",
    "CARGO_PROFILE_",
    "CARGO_TARGET_",
    "CARGO_UNSTABLE_",
    "RUSTC",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_flags_are_left_out() {
        for name in ["RUSTFLAGS", "RUSTC_WRAPPER", "CARGO_PROFILE_RELEASE_DEBUG"] {
            assert!(changes_the_build(OsStr::new(name)), "{name}");
        }
        for name in ["PATH", "HOME", "CARGO_HOME", "RUSTUP_HOME", "CARGO_NET_OFFLINE"] {
            assert!(!changes_the_build(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn other_bytes_are_an_error_that_says_what_to_do() {
        let scratch = Scratch::new().unwrap();
        let kept = scratch.0.join("headgate.bpf.o");
        fs::write(&kept, b"abc").unwrap();
        assert!(compare(b"abc", &kept).is_ok());
        let error = compare(b"abd", &kept).unwrap_err().to_string();
        assert!(error.contains("first difference at 2"), "{error}");
        assert!(error.contains("cargo xtask ebpf"), "{error}");
    }

    #[test]
    fn spaces_in_paths_do_not_split_flags() {
        let flags = flags(Path::new("/a b"), Path::new("/t"), Path::new("/s")).unwrap();
        let flags = flags.into_string().unwrap();
        assert!(flags.split('\x1f').any(|flag| flag == "--remap-path-prefix=/a b=/headgate"));
    }
}
