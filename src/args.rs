//! The command line. Go's style works too: one dash or two, and klog's flags.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use mooring::cli::{check_config, wipe};
use mooring::method::{self, Method, Verify, WipeRules};

/// Local disks as Kubernetes persistent volumes.
#[derive(Debug, Parser)]
#[command(name = "mooring", version, args_override_self = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Publish and reclaim the volumes of this node (the default)
    #[command(args_override_self = true)]
    Agent(AgentArgs),
    /// Wipe one volume by hand, with the agent's care and refusals
    #[command(args_override_self = true)]
    Wipe(WipeArgs),
    /// Say all that is wrong or odd with a ConfigMap
    #[command(args_override_self = true)]
    CheckConfig(CheckConfigArgs),
}

#[derive(Debug, Args)]
pub struct CheckConfigArgs {
    /// A directory with the ConfigMap's keys as files, a manifest with the ConfigMap, or -
    /// for a manifest on the standard input
    #[arg(value_name = "DIR|FILE|-")]
    path: PathBuf,
    /// Fail when there are warnings, too
    #[arg(long)]
    strict: bool,
    /// Look at the directories of the classes as well: are they here, is a volume in them?
    #[arg(long)]
    directories: bool,
}

impl CheckConfigArgs {
    /// What they ask for.
    pub fn options(self) -> check_config::Options {
        check_config::Options { path: self.path, strict: self.strict, directories: self.directories }
    }
}

#[derive(Debug, Args)]
pub struct AgentArgs {
    /// Name of this Node in the cluster (spec.nodeName)
    #[arg(long, env = "MY_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// Namespace of the Jobs that wipe devices with useJobForCleaning: this pod's
    #[arg(long, env = "MY_NAMESPACE", value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Image of these Jobs: this agent's own, or one with the programs of blockCleanerCommand
    #[arg(long, env = "JOB_CONTAINER_IMAGE", value_name = "IMAGE")]
    pub job_image: Option<String>,
    /// Directory with the ConfigMap's keys as files
    #[arg(long, default_value = "/etc/provisioner/config", value_name = "DIR")]
    pub config_dir: PathBuf,
    /// Host directory that keeps what is known of each volume's content; made when it is
    /// missing. Without this flag, /var/lib/mooring, if that is there
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Address of the HTTP pages; ":PORT" for every address
    #[arg(long, default_value = ":8080", value_name = "HOST:PORT")]
    pub listen_address: String,
    /// Path of the metrics page
    #[arg(long, default_value = "/metrics", value_name = "PATH", value_parser = page_path)]
    pub metrics_path: String,
    /// Form of the log lines
    #[arg(long, default_value = "text", value_enum)]
    pub log_format: LogFormat,
    /// Verbosity: 4 and more show each decision
    #[arg(long = "v", short = 'v', default_value_t = 0, value_name = "N", allow_negative_numbers = true)]
    pub verbosity: i32,
    /// Accepted and not needed: discovery does not poll
    #[arg(long, hide = true, value_parser = period)]
    pub discovery_period: Option<Duration>,
    /// The config is read anew when its directory changes; and this often, should that not
    /// be noticed
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = period)]
    pub config_sync_period: Duration,
}

#[derive(Debug, Args)]
pub struct WipeArgs {
    /// A block device, a link to one, or a directory that is a mount point
    #[arg(value_name = "DEVICE|DIR")]
    path: PathBuf,
    /// How a device is wiped: auto, zero, discard, overwrite, signatures or command; a
    /// directory is emptied
    #[arg(long, default_value = "auto", value_name = "METHOD")]
    method: String,
    /// Passes of the methods zero (1) and overwrite (3)
    #[arg(long, value_name = "N")]
    passes: Option<u32>,
    /// What is read back: none, sample or full
    #[arg(long, default_value = "sample", value_parser = Verify::parse)]
    verify: Verify,
    /// The most that is written in a second, such as 200Mi
    #[arg(long, value_name = "QUANTITY", value_parser = method::bandwidth)]
    bandwidth: Option<u64>,
    /// Say what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Ask nothing
    #[arg(long, short = 'y')]
    yes: bool,
    /// The agent's state directory. Without this flag, /var/lib/mooring, if that is there
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Wipe the volume with this digest in spite of what the ledger says of it
    #[arg(long, value_name = "DIGEST")]
    force_identity: Option<String>,
    /// Refuse a volume that has another digest
    #[arg(long, value_name = "DIGEST")]
    expect_identity: Option<String>,
    /// After --, what the method command runs; its environment names the device
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl WipeArgs {
    /// What they ask for.
    ///
    /// # Errors
    /// clap's, for a method that can't be used so.
    pub fn options(self) -> Result<wipe::Options, clap::Error> {
        let usage = |text: &str| Cli::command().error(ErrorKind::ValueValidation, text);
        if !self.command.is_empty() && self.method != "command" {
            return Err(usage("a command is run by --method command only"));
        }
        let method = Method::new(&self.method, self.passes, Some(&self.command));
        let method = method.map_err(|error| usage(&error.to_string()))?;
        Ok(wipe::Options {
            path: self.path,
            rules: WipeRules { method, verify: self.verify, bandwidth: self.bandwidth, ..WipeRules::default() },
            dry_run: self.dry_run,
            yes: self.yes,
            state_dir: self.state_dir,
            forced: self.force_identity,
            expected: self.expect_identity,
        })
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// A duration in Go's form, above zero.
fn period(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<jiff::SignedDuration>().ok().filter(jiff::SignedDuration::is_positive);
    parsed.map(jiff::SignedDuration::unsigned_abs).ok_or_else(|| "expected a duration such as 10s or 1m30s".to_owned())
}

/// A path for a page that no other page has.
fn page_path(text: &str) -> Result<String, String> {
    let plain = text.starts_with('/') && text.chars().all(|c| c.is_ascii_alphanumeric() || "/-_.~".contains(c));
    match text {
        "/ready" | "/healthz" | "/volumes" => Err("another page has this path".to_owned()),
        _ if !plain => Err("a path begins with / and has letters, digits and -_.~/ only".to_owned()),
        _ => Ok(text.to_owned()),
    }
}

/// Flags of klog and glog that have no meaning here, and whether they take a value as the
/// next word; Go's boolean flags take one after "=" only. Old manifests carry them.
/// `master` is the Kubernetes client's.
const IGNORED: [(&str, bool); 15] = [
    ("add_dir_header", false),
    ("alsologtostderr", false),
    ("alsologtostderrthreshold", true),
    ("legacy_stderr_threshold_behavior", false),
    ("log_backtrace_at", true),
    ("log_dir", true),
    ("log_file", true),
    ("log_file_max_size", true),
    ("logtostderr", false),
    ("master", true),
    ("one_output", false),
    ("skip_headers", false),
    ("skip_log_headers", false),
    ("stderrthreshold", true),
    ("vmodule", true),
];

/// Reads the command line, and says which flags of it were ignored.
///
/// # Errors
/// clap's, which prints itself.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<(Cli, Vec<String>), clap::Error> {
    let (args, ignored) = normalize(args);
    Cli::try_parse_from(args).map(|cli| (cli, ignored))
}

/// Turns Go's style into clap's: `-flag=x` into `--flag=x`, flags only into `agent`,
/// klog's flags into nothing.
fn normalize(args: impl IntoIterator<Item = OsString>) -> (Vec<OsString>, Vec<String>) {
    let mut args = args.into_iter();
    let mut out: Vec<OsString> = args.next().into_iter().collect();
    let mut ignored = Vec::new();
    let mut rest = args.peekable();
    let asks = |arg: &OsString| ["-h", "--help", "-V", "--version", "help"].iter().any(|known| arg == known);
    if rest.peek().is_none_or(|arg| arg.as_encoded_bytes().starts_with(b"-") && !asks(arg)) {
        out.push("agent".into());
    }
    while let Some(arg) = rest.next() {
        if arg == "--" {
            // What follows is somebody else's.
            out.push(arg);
            out.extend(rest);
            break;
        }
        let Some(text) = arg.to_str().filter(|text| text.starts_with('-') && text.len() > 1) else {
            out.push(arg);
            continue;
        };
        let flag = text.trim_start_matches('-');
        let name = flag.split_once('=').map_or(flag, |(name, _)| name);
        // Programs that read them by pflag write them with hyphens.
        let klog_name = name.replace('-', "_");
        if let Some((_, takes_value)) = IGNORED.into_iter().find(|(known, _)| *known == klog_name) {
            ignored.push(text.to_owned());
            if takes_value && !flag.contains('=') {
                rest.next();
            }
        } else if text.starts_with("--") || name.len() == 1 {
            out.push(arg);
        } else {
            out.push(format!("--{flag}").into());
        }
    }
    (out, ignored)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(args: &[&str]) -> (AgentArgs, Vec<String>) {
        let all = std::iter::once("mooring").chain(args.iter().copied()).map(OsString::from);
        let (cli, ignored) = parse(all).expect("the flags are valid");
        match cli.command {
            Command::Agent(agent) => (agent, ignored),
            _ => panic!("it is the agent"),
        }
    }

    fn wipe(line: &str) -> Result<wipe::Options, clap::Error> {
        let (cli, _) = parse(["mooring", "wipe"].into_iter().chain(line.split(' ')).map(OsString::from))?;
        match cli.command {
            Command::Wipe(args) => args.options(),
            _ => panic!("it is a wipe"),
        }
    }

    #[test]
    fn a_wipe_is_asked_for_in_words_that_the_configuration_knows() {
        let options = wipe("/dev/sdb").expect("a path is enough");
        assert_eq!(options.rules, WipeRules::default());
        assert!(!options.yes && !options.dry_run);
        let options = wipe("--method zero --passes 2 --verify=full --bandwidth 200Mi -y /dev/sdb").expect("all valid");
        let rules = WipeRules {
            method: Method::Zero { passes: 2 },
            verify: Verify::Full,
            bandwidth: Some(200 << 20),
            ..WipeRules::default()
        };
        assert_eq!((options.rules, options.yes), (rules, true));
        let options = wipe("/dev/sdb --method command -- /bin/wipe -x=1 -logtostderr").expect("all valid");
        let words = ["/bin/wipe", "-x=1", "-logtostderr"].map(str::to_owned).to_vec();
        assert_eq!(options.rules.method, Method::Command(words), "its words are its own");
        for bad in [
            "--method zap /dev/sdb",
            "--method command /dev/sdb",
            "--passes 2 /dev/sdb",
            "--method zero --passes 101 /dev/sdb",
            "--verify maybe /dev/sdb",
            "--bandwidth 1 /dev/sdb",
            "/dev/sdb /dev/sdc",
            "/dev/sdb -- /bin/wipe",
            "--yes",
        ] {
            assert_eq!(wipe(bad).expect_err(bad).exit_code(), 2, "{bad}");
        }
    }

    #[test]
    fn the_old_manifests_flags_are_understood() {
        assert_eq!(agent(&[]).0.listen_address, ":8080");
        let (args, ignored) = agent(&[
            "-listen-address=:9090",
            "--v=4",
            "-logtostderr",
            "--stderrthreshold",
            "INFO",
            "-discovery-period=1s",
        ]);
        assert_eq!((args.listen_address.as_str(), args.verbosity), (":9090", 4));
        assert_eq!(ignored, ["-logtostderr", "--stderrthreshold"]);
        assert_eq!(agent(&["agent", "-v", "2"]).0.verbosity, 2);
        assert_eq!(agent(&["-v=5", "--v=6"]).0.verbosity, 6, "the last one wins, as in Go");
        assert_eq!(agent(&["--v", "4", "--listen-address", ":1"]).0.verbosity, 4);
        assert_eq!(agent(&["-v=-1"]).0.verbosity, -1);
        assert_eq!(agent(&["--config-sync-period=1m30s"]).0.config_sync_period.as_secs(), 90);
        assert_eq!(agent(&[]).0.config_sync_period.as_secs(), 10);
    }

    #[test]
    fn every_flag_of_klog_is_ignored_with_its_value() {
        for (name, takes_value) in IGNORED {
            for dashes in ["-", "--"] {
                let mut line = vec![format!("{dashes}{name}")];
                if takes_value {
                    // Go takes the next word, whatever it looks like.
                    line.push("-x".to_owned());
                }
                line.extend([format!("{dashes}{}=true", name.replace('_', "-")), "--v=4".to_owned()]);
                let (args, ignored) = agent(&line.iter().map(String::as_str).collect::<Vec<_>>());
                assert_eq!((args.verbosity, ignored.len()), (4, 2), "{line:?}");
            }
        }
        let (args, _) = agent(&["--logtostderr", "--metrics-path", "/m", "-alsologtostderr"]);
        assert_eq!(args.metrics_path, "/m", "a boolean flag takes no value as the next word");
    }

    #[test]
    fn an_unknown_flag_is_told_with_the_one_that_is_meant() {
        for (bad, meant) in [
            ("-listen-adress=:9090", "--listen-address"),
            ("--metric-path=/m", "--metrics-path"),
            ("--config-sync-perod=1s", "--config-sync-period"),
            ("--discovery-perod=1s", "--discovery-period"),
        ] {
            let error = parse(["mooring", bad].map(OsString::from)).expect_err(bad);
            let text = error.to_string();
            assert!(error.exit_code() == 2 && text.contains("unexpected argument") && text.contains(meant), "{text}");
        }
    }

    #[test]
    fn an_unknown_flag_or_unusable_value_is_an_error() {
        for bad in [
            "--no-such-flag",
            "--metrics-path=metrics",
            "--metrics-path=/ready",
            "--metrics-path=",
            "--config-sync-period=0s",
            "--discovery-period=5",
            "--discovery-period=-1s",
            "--v=much",
            "-v4",
        ] {
            assert!(parse(["mooring", bad].map(OsString::from)).is_err(), "{bad}");
        }
    }
}
