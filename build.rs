//! Tells the program by which compiler it is built, for `mooring_build_info`.

use std::env;
use std::process::Command;

fn main() {
    let compiler = env::var_os("RUSTC").expect("Cargo names the compiler");
    let answer = Command::new(compiler).arg("--version").output().expect("the compiler runs");
    let answer = String::from_utf8_lossy(&answer.stdout);
    let version = answer.split(' ').nth(1).unwrap_or("unknown");
    #[allow(clippy::print_stdout)]
    {
        println!("cargo::rustc-env=MOORING_RUSTC={version}");
        println!("cargo::rerun-if-changed=build.rs");
    }
}
