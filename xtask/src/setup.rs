//! Gets a Debian machine ready: packages, and the toolchain for the XDP program where it is at hand.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{ebpf, lab, process};

/// What a missing piece is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Building the gateway.
    Build,
    /// Labs: the demo, the benchmark and the tests on namespaces.
    Lab,
}

/// A Debian package, and how to see that what it brings is there.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    /// Name of the Debian package.
    pub package: &'static str,
    /// What for.
    pub purpose: Purpose,
    sign: Sign,
}

#[derive(Clone, Copy, Debug)]
enum Sign {
    Program(&'static str),
    /// Any of these files.
    File(&'static [&'static str]),
}

/// Installs what is missing when root; otherwise fails with the exact command. Quick when nothing is
/// missing. Includes the toolchain for the XDP program, which only building that program needs.
pub fn run() -> Result<()> {
    packages()?;
    toolchain()
}

/// As [`run`], without that toolchain.
pub fn packages() -> Result<()> {
    let missing = missing(None);
    if missing.is_empty() {
        println!("setup: all Debian packages are there");
        return Ok(());
    }
    install(&missing)
}

/// What is missing for `purpose` (`None`: for anything).
pub fn missing(purpose: Option<Purpose>) -> Vec<Need> {
    NEEDS
        .iter()
        .filter(|need| purpose.is_none_or(|purpose| need.purpose == purpose))
        .filter(|need| !need.is_there())
        .copied()
        .collect()
}

/// The command that installs `needs`.
pub fn install_command(needs: &[Need]) -> String {
    let packages: Vec<&str> = needs.iter().map(|need| need.package).collect();
    format!("apt-get install --no-install-recommends -y {}", packages.join(" "))
}

impl Need {
    fn is_there(&self) -> bool {
        match self.sign {
            Sign::Program(program) => process::find(program).is_some(),
            Sign::File(files) => files.iter().any(|file| Path::new(file).exists()),
        }
    }
}

fn install(missing: &[Need]) -> Result<()> {
    let command = install_command(missing);
    if !nix::unistd::geteuid().is_root() {
        bail!("packages are missing; as root, run:\n  apt-get update && {command}");
    }
    let Some(apt) = process::find("apt-get") else {
        bail!("this is no Debian machine; install what these packages bring: {command}");
    };
    println!("setup: {command}");
    let quiet = QuietServices::begin()?;
    let apt = || {
        let mut command = Command::new(&apt);
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    process::run(apt().args(["-q", "update"]))?;
    process::run(
        apt()
            .args(["-q", "install", "--no-install-recommends", "-y"])
            .args(missing.iter().map(|need| need.package)),
    )?;
    drop(quiet);
    disable_services(missing)?;
    let still: Vec<&str> =
        missing.iter().filter(|need| !need.is_there()).map(|need| need.package).collect();
    if !still.is_empty() {
        bail!("apt-get installed {still:?}, and yet what they should bring is not there");
    }
    Ok(())
}

/// While it lives, packages that are being installed do not start their services.
struct QuietServices {
    policy: Option<&'static Path>,
}

/// 101: "action forbidden by policy", as invoke-rc.d(8) defines it.
const POLICY: &str = "#!/bin/sh\n# Written by headgate's `cargo xtask setup`, for as long as it installs.\nexit 101\n";

impl QuietServices {
    fn begin() -> Result<QuietServices> {
        let policy = Path::new("/usr/sbin/policy-rc.d");
        // One of ours was left by an installation that was cut off.
        if policy.exists() && fs::read_to_string(policy).ok().as_deref() != Some(POLICY) {
            return Ok(QuietServices { policy: None });
        }
        fs::write(policy, POLICY).context("cannot write policy-rc.d")?;
        process::run(Command::new("chmod").arg("755").arg(policy))?;
        Ok(QuietServices { policy: Some(policy) })
    }
}

impl Drop for QuietServices {
    fn drop(&mut self) {
        if let Some(policy) = self.policy {
            let _ = fs::remove_file(policy);
        }
    }
}

/// The lab runs nginx and HAProxy by itself: those that we brought shall not start with the machine.
fn disable_services(installed: &[Need]) -> Result<()> {
    if !Path::new("/run/systemd/system").exists() {
        return Ok(());
    }
    for (package, unit) in [("nginx-light", "nginx"), ("haproxy", "haproxy")] {
        if installed.iter().any(|need| need.package == package) {
            process::run(process::command("systemctl").args(["disable", "--now", unit]))?;
        }
    }
    Ok(())
}

/// The toolchain for the XDP program is needed only to build that program again; the object is
/// checked in. An installer beside the checkout is used where there is one.
fn toolchain() -> Result<()> {
    let Err(lacking) = ebpf::toolchain_ready() else {
        println!("setup: the toolchain for the XDP program is there");
        return Ok(());
    };
    let installer = lab::workspace().join("../shared/toolchain/install");
    if installer.is_file() {
        process::run(&mut Command::new(installer))?;
        return ebpf::toolchain_ready().map_err(anyhow::Error::msg);
    }
    println!(
        "setup: `cargo xtask ebpf` cannot build the XDP program here (the one checked in is used): {lacking}"
    );
    Ok(())
}

const fn program(package: &'static str, purpose: Purpose, name: &'static str) -> Need {
    Need { package, purpose, sign: Sign::Program(name) }
}

const fn file(package: &'static str, files: &'static [&'static str]) -> Need {
    Need { package, purpose: Purpose::Build, sign: Sign::File(files) }
}

/// libxdp, which xsk-rs builds from source, needs the first group.
const NEEDS: &[Need] = &[
    program("clang", Purpose::Build, "clang"),
    program("llvm", Purpose::Build, "llvm-strip"),
    program("make", Purpose::Build, "make"),
    program("m4", Purpose::Build, "m4"),
    program("pkg-config", Purpose::Build, "pkg-config"),
    file("libelf-dev", &["/usr/include/libelf.h"]),
    file("zlib1g-dev", &["/usr/include/zlib.h"]),
    // What `clang -target bpf` wants of it is <asm/types.h> in the default include path.
    file("gcc-multilib", &["/usr/include/asm/types.h"]),
    program("iproute2", Purpose::Lab, "ip"),
    program("ethtool", Purpose::Lab, "ethtool"),
    program("iputils-ping", Purpose::Lab, "ping"),
    program("procps", Purpose::Lab, "sysctl"),
    program("curl", Purpose::Lab, "curl"),
    program("nginx-light", Purpose::Lab, "nginx"),
    program("haproxy", Purpose::Lab, "haproxy"),
    program("wrk", Purpose::Lab, "wrk"),
    program("nftables", Purpose::Lab, "nft"),
    program("tcpdump", Purpose::Lab, "tcpdump"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_can_be_pasted() {
        assert_eq!(
            install_command(&NEEDS[..2]),
            "apt-get install --no-install-recommends -y clang llvm"
        );
    }

    #[test]
    fn a_need_is_seen_by_its_sign() {
        assert!(program("x", Purpose::Lab, "sh").is_there());
        assert!(!program("x", Purpose::Lab, "no-such-program-here").is_there());
        assert!(file("x", &["/no/such", "/proc/self"]).is_there());
        assert!(!file("x", &["/no/such"]).is_there());
    }
}
