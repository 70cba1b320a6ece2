//! `namePattern`: a comma-separated list of the Go standard library's
//! `filepath.Match` globs, any of which may match. Go's syntax differs from the
//! shell's (`[^a]` negates, `\` escapes), and existing ConfigMaps are written in
//! it, so it is matched here as Go does it.

use std::fmt;

/// A valid list of globs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern {
    text: String,
    globs: Vec<Vec<Token>>,
}

/// Why a pattern can't be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{glob:?} is no valid pattern: {problem}")]
pub struct PatternError {
    glob: String,
    problem: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// `*`: any run of characters other than `/`.
    Star,
    /// `?`: one character other than `/`.
    Any,
    /// `[a-z]`, `[^a]`.
    Class { negated: bool, ranges: Vec<(char, char)> },
    /// The character itself.
    Literal(char),
}

impl NamePattern {
    /// Reads a comma-separated list of globs.
    ///
    /// # Errors
    /// The first malformed glob and what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let globs = text
            .split(',')
            .map(|glob| tokens(glob).map_err(|problem| PatternError { glob: glob.to_owned(), problem }))
            .collect::<Result<_, _>>()?;
        Ok(Self { text: text.to_owned(), globs })
    }

    /// Whether any of the globs matches the whole name.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let name: Vec<char> = name.chars().collect();
        self.globs.iter().any(|glob| matches(glob, &name))
    }
}

impl Default for NamePattern {
    fn default() -> Self {
        Self { text: "*".to_owned(), globs: vec![vec![Token::Star]] }
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn tokens(glob: &str) -> Result<Vec<Token>, &'static str> {
    let mut rest = glob.chars().peekable();
    let mut out = Vec::new();
    while let Some(c) = rest.next() {
        out.push(match c {
            '*' => Token::Star,
            '?' => Token::Any,
            '\\' => Token::Literal(rest.next().ok_or("it ends in a lone backslash")?),
            '[' => {
                let negated = rest.next_if_eq(&'^').is_some();
                let mut ranges = Vec::new();
                loop {
                    if !ranges.is_empty() && rest.next_if_eq(&']').is_some() {
                        break;
                    }
                    let low = class_character(&mut rest)?;
                    let high = if rest.next_if_eq(&'-').is_some() { class_character(&mut rest)? } else { low };
                    ranges.push((low, high));
                }
                Token::Class { negated, ranges }
            }
            other => Token::Literal(other),
        });
    }
    Ok(out)
}

/// One end of a range; Go demands that `-` and `]` be escaped there.
fn class_character(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<char, &'static str> {
    match rest.next() {
        Some('\\') => rest.next().ok_or("a [ is not closed"),
        Some('-' | ']') => Err("a - or ] inside [ ] must be written with a backslash"),
        Some(c) => Ok(c),
        None => Err("a [ is not closed"),
    }
}

/// Whole-name match with backtracking to the last star only: linear in practice.
fn matches(glob: &[Token], name: &[char]) -> bool {
    let (mut g, mut n) = (0, 0);
    let mut last_star: Option<(usize, usize)> = None;
    while n < name.len() {
        let here = glob.get(g);
        if here == Some(&Token::Star) {
            last_star = Some((g, n));
            g += 1;
        } else if here.is_some_and(|token| token.accepts(name[n])) {
            g += 1;
            n += 1;
        } else if let Some((star, taken)) = last_star.filter(|(_, taken)| name[*taken] != '/') {
            last_star = Some((star, taken + 1));
            g = star + 1;
            n = taken + 1;
        } else {
            return false;
        }
    }
    glob[g..].iter().all(|token| *token == Token::Star)
}

impl Token {
    fn accepts(&self, c: char) -> bool {
        match self {
            Self::Star => false,
            Self::Any => c != '/',
            Self::Class { negated, ranges } => {
                c != '/' && ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *negated
            }
            Self::Literal(literal) => *literal == c,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cases from the table of Go's `path/filepath` tests.
    #[test]
    fn globs_match_as_in_go() {
        for (glob, name, expected) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "a", true),
            ("a*", "abc", true),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[e-g]", "abc", false),
            ("ab[^c]", "abc", false),
            ("ab[^b-d]", "abc", false),
            ("ab[^e-g]", "abc", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "ab", false),
            ("a?b", "a☺b", true),
            ("a[^a]b", "a☺b", true),
            ("a???b", "a☺b", false),
            ("[a-ζ]*", "α", true),
            ("*[a-ζ]", "A", false),
            ("[\\]a]", "]", true),
            ("[\\-]", "-", true),
            ("[x\\-]", "x", true),
            ("[x\\-]", "z", false),
            ("*x", "xxx", true),
            ("nvme*,ssd-[0-9]", "ssd-1", true),
            ("nvme*,ssd-[0-9]", "ssd-x", false),
            ("", "", true),
            ("", "a", false),
        ] {
            let pattern = NamePattern::parse(glob).expect("the pattern is valid");
            assert_eq!(pattern.matches(name), expected, "{glob} on {name}");
        }
    }

    #[test]
    fn malformed_globs_are_errors() {
        for glob in ["[]a]", "[-]", "[x-]", "[-x]", "[", "[^", "[^bc", "a[", "a\\", "[a-b-c]", "ok,["] {
            assert!(NamePattern::parse(glob).is_err(), "{glob}");
        }
    }
}
