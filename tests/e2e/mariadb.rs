//! An image of a database, out of the files of Debian's packages.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::harness::disk::run;
use crate::harness::image;

pub const IMAGE: &str = "docker.io/library/mariadb:test";

/// Small, and without a network.
const FLAGS: &str = "--no-defaults --user=root --datadir=/data/db --socket=/tmp/socket --tmpdir=/tmp \
    --lc-messages-dir=/usr/share/mysql --skip-networking --performance-schema=off --innodb-use-native-aio=off \
    --innodb-buffer-pool-size=8M --innodb-log-file-size=4M --innodb-data-file-path=ibdata1:8M:autoextend \
    --key-buffer-size=256K --aria-pagecache-buffer-size=256K";

/// Makes `tar`. `dir` is for what it is made of.
pub fn build(dir: &Path, tar: &Path) {
    let root = dir.join("mariadb");
    for name in ["bin", "data", "etc", "proc", "sys", "dev", "tmp", "usr/share"] {
        fs::create_dir_all(root.join(name)).expect("a directory can be made in a new one");
    }
    let busybox = root.join("bin/busybox");
    fs::copy("/bin/busybox", &busybox).expect("Debian's package busybox-static is installed (`make setup`)");
    for name in ["cat", "mkdir", "mv", "rm", "sh"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).expect("a link can be made");
    }
    for name in ["mariadbd", "mariadb"] {
        let program = find(name);
        fs::copy(&program, root.join("bin").join(name)).expect("a program can be copied");
        for library in run(Command::new("ldd").arg(&program)).split_whitespace().filter(|word| word.starts_with('/')) {
            let copy = root.join(library.trim_start_matches('/'));
            fs::create_dir_all(copy.parent().expect("it is in a directory")).expect("a directory can be made");
            fs::copy(library, copy).expect("a library can be copied");
        }
    }
    run(Command::new("cp").args(["-r", "/usr/share/mysql"]).arg(root.join("usr/share")));
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n").expect("a file can be written");
    image::build(tar, IMAGE, &root, &json!({ "Env": ["PATH=/bin"] }));
}

/// Debian has daemons where not everybody's PATH leads.
fn find(name: &str) -> PathBuf {
    let paths = ["/usr/sbin", "/usr/bin"].map(|dir| Path::new(dir).join(name));
    let found = paths.into_iter().find(|path| path.exists());
    found.expect("Debian's packages mariadb-server-core and mariadb-client-core are installed (`make setup`)")
}

/// Runs the server on `/data`, which is initialised the first time, as `mariadb-install-db` does.
pub fn serve() -> String {
    format!(
        "cd /tmp
        flags='{FLAGS}'
        if [ ! -d /data/db ]; then
            rm -rf /data/new && mkdir /data/new
            {{
                echo 'create database mysql;'
                echo 'use mysql;'
                echo 'set @auth_root_socket=NULL;'
                cd /usr/share/mysql
                cat mysql_system_tables.sql mysql_performance_tables.sql mysql_system_tables_data.sql
            }} | mariadbd $flags --datadir=/data/new --bootstrap || exit 1
            mv /data/new /data/db
        fi
        exec mariadbd $flags"
    )
}

/// A client that has the server do what its standard input or `-e` says.
pub const CLIENT: &str = "mariadb --no-defaults --socket=/tmp/socket --skip-column-names --batch --unbuffered";
