//! Arguments as people and Docker's scripts write them, brought into the one shape that the parser knows:
//! `--option value` and `-o value`, each switch alone, `--help`, and `--` before what belongs to the container's
//! command. Which option takes a value is read from the verbs' own declarations.
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

use argh::{CommandInfoWithArgs, FlagInfo, FlagInfoKind};

/// The global option, which may stand after the verb too unless the verb has its own.
const SOCKET: &str = "--socket";

/// The verbs whose first argument (an image, a task) is followed by a command with options of its own.
const COMMAND_FOLLOWS: [&[&str]; 3] = [&["run"], &["exec"], &["service", "create"]];

/// What the arguments are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Normal {
    /// A command for the parser.
    Command(Arguments),
    /// `--version`.
    Version,
}

/// The arguments for the parser, and the verbs among them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Arguments {
    pub(super) arguments: Vec<String>,
    pub(super) verbs: Vec<String>,
}

/// What is wrong with them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ArgumentError {
    pub(super) text: String,
    pub(super) verbs: Vec<String>,
}

struct Normaliser<'a> {
    level: &'a CommandInfoWithArgs,
    global: Vec<String>,
    out: Arguments,
    wants_help: bool,
}

/// Brings arguments (without the program's name) into the parser's shape.
pub(super) fn normalise(root: &CommandInfoWithArgs, arguments: &[String]) -> Result<Normal, ArgumentError> {
    let mut normaliser = Normaliser { level: root, global: Vec::new(), out: Arguments::default(), wants_help: false };
    let mut rest = arguments.iter().map(String::as_str);
    while let Some(argument) = rest.next() {
        let at_root = normaliser.out.verbs.is_empty();
        if at_root && matches!(argument, "--version" | "-v") {
            return Ok(Normal::Version);
        }
        let ended = normaliser
            .take(argument, &mut rest)
            .map_err(|text| ArgumentError { text, verbs: normaliser.out.verbs.clone() })?;
        if ended {
            normaliser.out.arguments.extend(rest.map(str::to_owned));
            break;
        }
    }
    normaliser.finish().map(Normal::Command)
}

impl<'a> Normaliser<'a> {
    /// Takes one argument, and the values that belong to it. True when all that follows is to be left as it is.
    fn take<'b>(&mut self, argument: &str, rest: &mut impl Iterator<Item = &'b str>) -> Result<bool, String> {
        match argument {
            "--" => {
                self.push("--");
                return Ok(true);
            }
            "-h" | "--help" => {
                self.wants_help = true;
                self.push("--help");
            }
            _ if argument.starts_with("--") => self.take_long(argument, rest)?,
            _ if argument.starts_with('-') && argument.len() > 1 => self.take_short(argument, rest)?,
            _ => return Ok(self.take_word(argument, rest)),
        }
        Ok(false)
    }

    fn take_long<'b>(&mut self, argument: &str, rest: &mut impl Iterator<Item = &'b str>) -> Result<(), String> {
        let (name, value) = match argument.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (argument, None),
        };
        let flag = self.level.flags.iter().find(|flag| flag.long == name);
        match (flag, value) {
            (Some(flag), None) if is_yes_or_no(flag) => self.push_pair(name, "true"),
            (Some(flag), value) if takes_value(flag) => {
                let value = value.or_else(|| rest.next()).ok_or_else(|| format!("option {name} needs a value"))?;
                self.push_pair(name, value);
            }
            (Some(_), None | Some("true")) => self.push(name),
            (Some(_), Some("false")) => {}
            (Some(_), Some(value)) => {
                return Err(format!("switch {name} is either there or not: {value:?} makes no sense"));
            }
            (None, value) if name == SOCKET => {
                let value = value.or_else(|| rest.next()).ok_or_else(|| format!("option {name} needs a value"))?;
                self.global.extend([name.to_owned(), value.to_owned()]);
            }
            (None, _) => return Err(format!("unrecognized option {name}")),
        }
        Ok(())
    }

    /// `-d`, `-dvalue`, `-d=value`, and switches together as `-it`.
    fn take_short<'b>(&mut self, argument: &str, rest: &mut impl Iterator<Item = &'b str>) -> Result<(), String> {
        let mut letters = argument.chars();
        letters.next();
        while let Some(letter) = letters.next() {
            let flag = self.level.flags.iter().find(|flag| flag.short == Some(letter));
            let flag = flag.ok_or_else(|| format!("unrecognized option -{letter}"))?;
            let long = flag.long;
            if !takes_value(flag) {
                self.push(long);
                continue;
            }
            let glued = letters.as_str();
            let glued = glued.strip_prefix('=').unwrap_or(glued);
            let value = if letters.as_str().is_empty() { rest.next() } else { Some(glued) };
            let value = value.ok_or_else(|| format!("option -{letter} needs a value"))?;
            self.push_pair(long, value);
            return Ok(());
        }
        Ok(())
    }

    fn take_word<'b>(&mut self, word: &str, rest: &mut impl Iterator<Item = &'b str>) -> bool {
        self.push(word);
        if let Some(next) = self.level.commands.iter().find(|command| command.name == word) {
            self.level = find_command(self.level, next.name);
            self.out.verbs.push(word.to_owned());
            return false;
        }
        let verbs: Vec<&str> = self.out.verbs.iter().map(String::as_str).collect();
        if !COMMAND_FOLLOWS.contains(&verbs.as_slice()) {
            return false;
        }
        self.push("--");
        // `exec TASK -- CMD` means the same as without.
        match rest.next() {
            Some("--") | None => {}
            Some(first) => self.push(first),
        }
        true
    }

    fn push(&mut self, argument: &str) {
        self.out.arguments.push(argument.to_owned());
    }

    fn push_pair(&mut self, name: &str, value: &str) {
        self.push(name);
        self.push(value);
    }

    fn finish(mut self) -> Result<Arguments, ArgumentError> {
        let noun_alone = !self.level.commands.is_empty() && !self.wants_help;
        if noun_alone && self.out.arguments.last() == self.out.verbs.last() {
            let names: Vec<&str> = self.level.commands.iter().map(|command| command.name).collect();
            let text = format!("a command is missing: one of {}", names.join(", "));
            return Err(ArgumentError { text, verbs: self.out.verbs });
        }
        self.global.append(&mut self.out.arguments);
        self.out.arguments = self.global;
        Ok(self.out)
    }
}

fn find_command<'a>(level: &'a CommandInfoWithArgs, name: &str) -> &'a CommandInfoWithArgs {
    level.commands.iter().find(|command| command.name == name).map_or(level, |command| &command.command)
}

/// An option that without a value means yes.
fn is_yes_or_no(flag: &FlagInfo) -> bool {
    matches!(&flag.kind, FlagInfoKind::Option { arg_name } if *arg_name == "true|false")
}

fn takes_value(flag: &FlagInfo) -> bool {
    matches!(flag.kind, FlagInfoKind::Option { .. })
}
