//! The command line.

use super::lanes::{LANES, Underlay};
use super::measure::Kind;
use anyhow::{Result, ensure};
use argh::FromArgs;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Measures Formic against plain veth, kernel VXLAN in clear, wireguard-go and boringtun.
#[derive(FromArgs, Debug)]
pub struct Options {
    /// how often everything is measured, in turn (5)
    #[argh(option, default = "5")]
    pub rounds: u32,
    /// how long each measurement takes (3; TCP flows take whole seconds)
    #[argh(option, default = "3.0")]
    pub seconds: f64,
    /// measure only this underlay (gso, wire), lane (veth, vxlan, wireguard-go, boringtun, formic, formic-plain,
    /// formic-local) or kind (tcp, tcp4, udp, idle, load, flooded); repeatable
    #[argh(option, arg_name = "name")]
    pub only: Vec<String>,
    /// the binary, with options of `formic daemon` after it if any; repeatable: they are compared with the first
    #[argh(option, arg_name = "path")]
    pub formic: Vec<Formic>,
    /// where bench.json and bench.svg go (target/bench)
    #[argh(option, default = "PathBuf::from(\"target/bench\")", arg_name = "directory")]
    pub output: PathBuf,
    /// add to the values that the output directory has, instead of replacing them: a long run in pieces
    #[argh(switch)]
    pub add: bool,
    /// begin TCP connections with the machine's default congestion control, as a plain `iperf3 -C cubic` does: where that
    /// is BBR, its pacing stays (without this they begin with reno)
    #[argh(switch)]
    pub machine_congestion: bool,
    /// instead: what a daemon costs at rest, with 100 endpoints and 50 peers (one value a round, of at least 20 s)
    #[argh(switch)]
    pub idle: bool,
    /// instead: nanoseconds of single functions of the data path
    #[argh(switch)]
    pub micro: bool,
    /// one short round in which only counts that everything runs
    #[argh(switch)]
    pub smoke: bool,
}

/// One binary to measure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Formic {
    /// Where it is.
    pub path: PathBuf,
    /// Further options of its daemons.
    pub options: Vec<String>,
}

impl fmt::Display for Formic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        self.options.iter().try_for_each(|option| write!(f, " {option}"))
    }
}

impl FromStr for Formic {
    type Err = String;

    /// `PATH`, or `PATH --option value ...`. Not for paths with white space.
    fn from_str(text: &str) -> Result<Formic, String> {
        let mut words = text.split_whitespace();
        let path = words.next().ok_or("a path is needed")?.into();
        Ok(Formic { path, options: words.map(str::to_owned).collect() })
    }
}

impl Options {
    /// Checks the values, and puts in what `--smoke` means.
    pub fn completed(mut self) -> Result<Options> {
        if self.smoke {
            (self.rounds, self.seconds) = (1, 0.3);
        }
        ensure!(self.rounds > 0, "--rounds: at least one");
        ensure!(!(self.idle && self.micro), "--idle and --micro: one at a time");
        ensure!(self.seconds > 0.0 && self.seconds <= 600.0, "--seconds: above 0, at most 600");
        for name in &self.only {
            let known = [underlays(), kinds(), LANES.to_vec()].concat();
            ensure!(known.contains(&name.as_str()), "--only {name}: it is none of {}", known.join(", "));
        }
        if self.formic.is_empty() {
            self.formic.push(Formic { path: netns_tests::formic().to_owned(), options: Vec::new() });
        }
        for binary in &self.formic {
            ensure!(binary.path.is_file(), "{}: no such binary", binary.path.display());
        }
        Ok(self)
    }

    /// Whether a lane is measured.
    pub fn wants_lane(&self, lane: &str) -> bool {
        self.wants(&LANES, lane)
    }

    /// The underlays that are measured.
    pub fn underlays(&self) -> impl Iterator<Item = Underlay> {
        Underlay::ALL.into_iter().filter(|underlay| self.wants(&underlays(), underlay.name()))
    }

    /// What is measured on an underlay.
    pub fn kinds(&self, underlay: Underlay) -> impl Iterator<Item = Kind> {
        // The smoke run shows that each lane works on each underlay, and each kind on one of them.
        let brief = self.smoke && underlay != Underlay::Gso;
        Kind::ALL.into_iter().filter(move |kind| self.wants(&kinds(), kind.name()) && (!brief || *kind == Kind::Tcp))
    }

    /// Names of one class that are chosen narrow that class only.
    fn wants(&self, class: &[&str], name: &str) -> bool {
        let mut chosen = self.only.iter().filter(|only| class.contains(&only.as_str())).peekable();
        chosen.peek().is_none() || chosen.any(|only| only == name)
    }
}

fn underlays() -> Vec<&'static str> {
    Underlay::ALL.map(Underlay::name).to_vec()
}

fn kinds() -> Vec<&'static str> {
    Kind::ALL.map(Kind::name).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &[&str]) -> Result<Options> {
        let this = std::env::current_exe().unwrap();
        let words = [&["--formic", this.to_str().unwrap()], words].concat();
        Options::from_args(&["bench"], &words).map_err(|exit| anyhow::anyhow!(exit.output))?.completed()
    }

    #[test]
    fn only_narrows_its_own_class() {
        let all = options(&[]).unwrap();
        assert!(LANES.iter().all(|lane| all.wants_lane(lane)));
        assert_eq!((all.underlays().count(), all.kinds(Underlay::Wire).count()), (2, Kind::ALL.len()));
        let some = options(&["--only", "vxlan", "--only", "formic", "--only", "tcp"]).unwrap();
        assert_eq!(LANES.iter().filter(|lane| some.wants_lane(lane)).count(), 2);
        assert_eq!((some.underlays().count(), some.kinds(Underlay::Gso).collect::<Vec<_>>()), (2, vec![Kind::Tcp]));
    }

    #[test]
    fn smoke_is_short() {
        let smoke = options(&["--smoke", "--rounds", "9"]).unwrap();
        assert_eq!(smoke.rounds, 1);
        assert_eq!(smoke.kinds(Underlay::Gso).count(), Kind::ALL.len());
        assert_eq!(smoke.kinds(Underlay::Wire).collect::<Vec<_>>(), [Kind::Tcp]);
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            &["--only", "geneve"],
            &["--rounds", "0"],
            &["--seconds", "0"],
            &["--seconds", "NaN"],
            &["--formic", "/nonexistent"],
        ] {
            assert!(options(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_binary_may_have_options() {
        let formic: Formic = "/x/formic --log-level debug".parse().unwrap();
        assert_eq!(formic, Formic { path: "/x/formic".into(), options: vec!["--log-level".into(), "debug".into()] });
        assert_eq!(formic.to_string(), "/x/formic --log-level debug");
        assert!(" ".parse::<Formic>().is_err());
    }
}
