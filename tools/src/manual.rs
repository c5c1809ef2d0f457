//! The manual page and the completions of bash, zsh and fish, from the command line's own definition: what they say
//! cannot differ from `--help`. Pure: a definition in, texts out.

use argh::{CommandInfoWithArgs, FlagInfo, FlagInfoKind};
use std::fmt::Write as _;

/// One verb, or the program itself, whose path is empty.
struct Verb<'a> {
    path: String,
    info: &'a CommandInfoWithArgs,
}

/// A file to be written: its name, and what is in it.
pub type File = (&'static str, String);

/// All files. `version` is Formic's.
pub fn files(definition: &CommandInfoWithArgs, version: &str) -> Vec<File> {
    let verbs = verbs(definition);
    vec![
        ("formic.1", page(&verbs, version)),
        ("formic.bash", bash(&verbs)),
        ("_formic", zsh(&verbs)),
        ("formic.fish", fish(&verbs)),
    ]
}

/// The program and all verbs, each before the verbs below it.
fn verbs<'a>(definition: &'a CommandInfoWithArgs) -> Vec<Verb<'a>> {
    let mut found = vec![Verb { path: String::new(), info: definition }];
    let mut next = 0;
    while let Some(Verb { path, info }) = found.get(next) {
        let below = info.commands.iter().map(|command| Verb {
            path: format!("{path} {}", command.name).trim_start().to_owned(),
            info: &command.command,
        });
        let below: Vec<Verb<'a>> = below.collect();
        next += 1;
        let at = next;
        found.splice(at..at, below);
    }
    found
}

impl<'a> Verb<'a> {
    /// The options that are shown, `--help` among them.
    fn flags(&self) -> impl Iterator<Item = &'a FlagInfo<'static>> + use<'a> {
        self.info.flags.iter().filter(|flag| !flag.hidden)
    }

    /// The verbs below it and its options: what can come next.
    fn words(&self) -> String {
        let verbs = self.info.commands.iter().map(|command| command.name.to_owned());
        verbs.chain(self.flags().map(|flag| flag.long.to_owned())).collect::<Vec<_>>().join(" ")
    }
}

/// The first sentence, without its full stop.
fn first_sentence(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let end = line.find(". ").unwrap_or(line.len());
    line.get(..end).unwrap_or_default().trim_end_matches('.').to_owned()
}

// ---- the manual page

fn page(verbs: &[Verb<'_>], version: &str) -> String {
    let mut text = format!(".TH FORMIC 1 \"\" \"formic {version}\" \"Formic\"\n.SH NAME\n");
    text.push_str("formic \\- encrypted overlay networks for containers\n.SH SYNOPSIS\n.B formic\n.RI [ options ]\n");
    text.push_str(".I verb\n.RI [ arguments ]\n");
    for verb in verbs {
        match verb.path.as_str() {
            "" => text.push_str(".SH DESCRIPTION\n"),
            path if path.contains(' ') => _ = writeln!(text, ".SS {}", roff(path)),
            path => _ = writeln!(text, ".SH {}", roff(&path.to_uppercase())),
        }
        _ = writeln!(text, "{}", roff(verb.info.description));
        if !verb.path.is_empty() && verb.info.commands.is_empty() {
            _ = writeln!(text, ".P\n.B formic {}", roff(&verb.path));
            for positional in verb.info.positionals.iter().filter(|positional| !positional.hidden) {
                _ = writeln!(text, ".I {}", roff(positional.name));
            }
        }
        for flag in verb.flags() {
            _ = writeln!(text, ".TP\n{}\n{}", roff_flag(flag), roff(flag.description));
        }
    }
    text.push_str(END);
    text
}

/// What no verb's help says.
const END: &str = "\
.SH EXIT STATUS
0, or 1 for what failed, 125 for what
.B run
cannot do, and the command's own for
.BR exec .
.SH ENVIRONMENT
.TP
.B FORMIC_SOCKET
the daemon's socket, unless
.B \\-\\-socket
names it
.SH FILES
.TP
.I /run/formic.sock
the daemon's socket, which speaks a subset of the Docker Engine API
.TP
.I /var/lib/formic
the daemon's state; it holds keys
.SH SEE ALSO
.BR docker (1),
.BR ip\\-netns (8)
";

fn roff_flag(flag: &FlagInfo<'_>) -> String {
    let short = flag.short.map(|short| format!("\\-{short}, ")).unwrap_or_default();
    match flag.kind {
        FlagInfoKind::Switch => format!(".B {short}{}", roff(flag.long)),
        FlagInfoKind::Option { arg_name } => format!(".BI \"{short}{} \" {}", roff(flag.long), roff(arg_name)),
    }
}

/// Text in which nothing is a request or an escape; what stood in backquotes is bold.
fn roff(text: &str) -> String {
    let plain = text.split_whitespace().collect::<Vec<_>>().join(" ").replace('\\', "\\e").replace('-', "\\-");
    let parts = plain.split('`').enumerate();
    let marked: String =
        parts.map(|(index, part)| if index % 2 == 1 { format!("\\fB{part}\\fR") } else { part.into() }).collect();
    let at_start = marked.starts_with(['.', '\'']);
    if at_start { format!("\\&{marked}") } else { marked }
}

// ---- completions

/// Each path of verbs as a pattern of the shells' `case`, with a space before each verb.
fn patterns(verbs: &[Verb<'_>]) -> String {
    let paths = verbs.iter().filter(|verb| !verb.path.is_empty());
    paths.map(|verb| format!("\" {}\"", verb.path)).collect::<Vec<_>>().join("|")
}

/// What comes next after each path.
fn cases(verbs: &[Verb<'_>], act: impl Fn(String) -> String) -> String {
    let case = |verb: &Verb<'_>| {
        let before = if verb.path.is_empty() { String::new() } else { format!(" {}", verb.path) };
        format!("        \"{before}\") {} ;;\n", act(verb.words()))
    };
    verbs.iter().map(case).collect()
}

fn bash(verbs: &[Verb<'_>]) -> String {
    format!(
        "# Completion of formic for bash, made from its own definition.
_formic() {{
    local verbs= words= i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case \"$verbs ${{COMP_WORDS[i]}}\" in
        {}) verbs+=\" ${{COMP_WORDS[i]}}\" ;;
        esac
    done
    case $verbs in
{}    esac
    mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"${{COMP_WORDS[COMP_CWORD]}}\")
}}
complete -o default -F _formic formic
",
        patterns(verbs),
        cases(verbs, |words| format!("words=\"{words}\"")),
    )
}

fn zsh(verbs: &[Verb<'_>]) -> String {
    format!(
        "#compdef formic
# Completion of formic for zsh, made from its own definition.
_formic() {{
    local verbs= i
    for ((i = 2; i < CURRENT; i++)); do
        case \"$verbs $words[i]\" in
        ({}) verbs+=\" $words[i]\" ;;
        esac
    done
    case $verbs in
{}    esac
    _files
}}
_formic \"$@\"
",
        patterns(verbs),
        cases(verbs, |words| format!("compadd -- {words}")),
    )
}

fn fish(verbs: &[Verb<'_>]) -> String {
    let paths: Vec<String> = verbs.iter().filter(|verb| !verb.path.is_empty()).map(|verb| quoted(&verb.path)).collect();
    let mut text = format!(
        "# Completion of formic for fish, made from its own definition.
set -g __formic_paths {}
function __formic_at --argument-names wanted
    set -l tokens (commandline -opc)
    set -e tokens[1]
    set -l verbs ''
    for token in $tokens
        set -l longer (string trim \"$verbs $token\")
        contains -- $longer $__formic_paths; and set verbs $longer
    end
    test \"$verbs\" = \"$wanted\"
end
",
        paths.join(" ")
    );
    for verb in verbs {
        let at = format!("complete -c formic -n {}", quoted(&format!("__formic_at {}", quoted(&verb.path))));
        for command in &verb.info.commands {
            let sentence = quoted(&first_sentence(command.command.description));
            _ = writeln!(text, "{at} -f -a {} -d {sentence}", command.name);
        }
        for flag in verb.flags() {
            let long = flag.long.trim_start_matches('-');
            let short = flag.short.map(|short| format!(" -s {short}")).unwrap_or_default();
            let value = if matches!(flag.kind, FlagInfoKind::Option { .. }) { " -r" } else { "" };
            _ = writeln!(text, "{at} -l {long}{short}{value} -d {}", quoted(&first_sentence(flag.description)));
        }
    }
    text
}

/// One word of fish.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(name: &str) -> String {
        let files = files(&formic::cli::definition(), "0");
        files.into_iter().find(|(found, _)| *found == name).map(|(_, text)| text).unwrap()
    }

    #[test]
    fn every_verb_and_option_is_in_each() {
        let definition = formic::cli::definition();
        let (page, bash, zsh, fish) = (made("formic.1"), made("formic.bash"), made("_formic"), made("formic.fish"));
        let verbs = verbs(&definition);
        assert!(verbs.len() > 40, "{}", verbs.len());
        for verb in &verbs {
            for flag in verb.flags() {
                assert!(page.contains(&roff(flag.long)) && fish.contains(&format!("-l {}", &flag.long[2..])));
            }
            for text in [&bash, &zsh] {
                assert!(text.contains(&verb.words()), "{}", verb.path);
            }
        }
        assert!(page.contains(".SS swarm init\n") && page.contains(".SH ATTACH\n"));
        assert!(fish.contains("-n '__formic_at \\'swarm init\\'' -l advertise-addr -r -d "));
    }

    #[test]
    fn text_of_the_page_is_no_request() {
        assert_eq!(roff(".SH x"), "\\&.SH x");
        assert_eq!(roff("a `b-c` \\d"), "a \\fBb\\-c\\fR \\ed");
        assert_eq!(first_sentence("Does a. Then b."), "Does a");
        let requests = made("formic.1").lines().filter(|line| line.starts_with(['.', '\''])).count();
        let known = [".TH", ".SH", ".SS", ".B ", ".BI", ".BR", ".I ", ".RI", ".TP", ".P"];
        let page = made("formic.1");
        let fits = page.lines().filter(|line| known.iter().any(|request| line.starts_with(request))).count();
        assert_eq!(requests, fits);
    }

    #[test]
    fn quotes_are_kept_in_fish() {
        assert_eq!(quoted("the daemon's \\"), "'the daemon\\'s \\\\'");
    }
}
