//! Rust text reduced to what the checks look at. Not a parser: it knows comments, string and character literals and
//! identifiers, which is enough to find paths and keywords without being fooled by prose.

/// The text with comments and literals replaced by blanks; line breaks stay, so that line numbers stay true.
pub fn strip(text: &str) -> String {
    let mut scanner = Scanner { rest: text, out: String::with_capacity(text.len()) };
    while !scanner.rest.is_empty() {
        scanner.step();
    }
    scanner.out
}

struct Scanner<'a> {
    rest: &'a str,
    out: String,
}

impl Scanner<'_> {
    fn step(&mut self) {
        if self.rest.starts_with("//") {
            self.blank(self.rest.find('\n').unwrap_or(self.rest.len()));
        } else if self.rest.starts_with("/*") {
            self.blank(block_comment_len(self.rest));
        } else if let Some(len) = raw_string_len(self.rest) {
            self.blank(len);
        } else if self.rest.starts_with('"') {
            self.blank(quoted_len(self.rest, '"'));
        } else if let Some(len) = char_literal_len(self.rest) {
            self.blank(len);
        } else {
            self.keep();
        }
    }

    /// Keeps one word or one character, so that the `r` of `for"` is never taken for the start of a raw string.
    fn keep(&mut self) {
        let word = self.rest.find(|c: char| !is_word(c)).unwrap_or(self.rest.len());
        let len = if word > 0 { word } else { self.rest.chars().next().map_or(0, char::len_utf8) };
        let (kept, rest) = self.rest.split_at(len);
        self.out.push_str(kept);
        self.rest = rest;
    }

    fn blank(&mut self, len: usize) {
        let (gone, rest) = self.rest.split_at(len);
        self.out.extend(gone.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        self.rest = rest;
    }
}

/// Whether the character can stand in an identifier.
pub fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn block_comment_len(text: &str) -> usize {
    let mut depth = 0usize;
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

fn raw_string_len(text: &str) -> Option<usize> {
    let prefix = ["br", "cr", "r"].into_iter().find(|prefix| text.starts_with(prefix))?;
    let after = &text[prefix.len()..];
    let hashes = after.len() - after.trim_start_matches('#').len();
    let body = after[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let head = prefix.len() + hashes + 1;
    Some(body.find(&end).map_or(text.len(), |at| head + at + end.len()))
}

fn quoted_len(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + quote.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

/// `'x'` and `'\n'` are literals, `'a` is a lifetime.
fn char_literal_len(text: &str) -> Option<usize> {
    let body = text.strip_prefix('\'')?;
    let first = body.chars().next()?;
    if first == '\\' {
        return Some(quoted_len(text, '\''));
    }
    body[first.len_utf8()..].starts_with('\'').then(|| 2 + first.len_utf8())
}

/// Positions where `word` stands as a whole word.
pub fn words<'a>(stripped: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    stripped.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        let before = stripped[..at].chars().next_back();
        let after = stripped[at + word.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

/// The 1-based line of a position.
pub fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// The text with the bodies of `#[cfg(test)]` items blanked out.
pub fn without_tests(stripped: &str) -> String {
    let mut text = stripped.to_owned();
    let mut from = 0;
    while let Some(found) = text[from..].find("#[cfg(test)]") {
        let start = from + found;
        let end = item_end(&text, start);
        let blank: String = text[start..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        text.replace_range(start..end, &blank);
        from = start + blank.len();
    }
    text
}

/// End of the item that starts at `start`: its `;`, or the brace that closes its body.
fn item_end(text: &str, start: usize) -> usize {
    let mut depth = 0usize;
    for (at, c) in text[start..].char_indices() {
        match c {
            ';' if depth == 0 => return start + at + 1,
            '{' => depth += 1,
            '}' if depth <= 1 => return start + at + 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked() {
        let text = "a // crate::x\n/* b /* c */ d */ e \"crate::y \\\" z\" r#\"q\" w\"# 'x' '\\'' &'a f";
        let stripped = strip(text);
        assert_eq!(stripped.split_whitespace().collect::<Vec<_>>(), ["a", "e", "&'a", "f"]);
        assert_eq!(line_of(&stripped, stripped.find('e').unwrap()), 2);
    }

    #[test]
    fn a_word_that_ends_in_r_starts_no_raw_string() {
        assert_eq!(strip("for\"x\" y").split_whitespace().collect::<Vec<_>>(), ["for", "y"]);
    }

    #[test]
    fn whole_words_only() {
        assert_eq!(words("unsafe_code unsafe { } not_unsafe", "unsafe").collect::<Vec<_>>(), [12]);
    }

    #[test]
    fn test_modules_are_left_out() {
        let text = "a;\n#[cfg(test)]\nmod tests { fn x() { y } }\nb;\n#[cfg(test)]\nmod more;\nc;";
        assert_eq!(without_tests(text).split_whitespace().collect::<Vec<_>>(), ["a;", "b;", "c;"]);
    }
}
