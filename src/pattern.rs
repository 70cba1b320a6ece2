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

    /// Whether some name matches both.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.globs.iter().any(|one| other.globs.iter().any(|another| overlap(one, another)))
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

/// Whether a name matches both globs: from the end, which rests of one can match the same
/// as which rests of the other.
fn overlap(one: &[Token], other: &[Token]) -> bool {
    // `below[j]`: the rest of `one` after the token looked at, and `other[j..]`.
    let mut below: Vec<bool> = Vec::new();
    for i in (0..=one.len()).rev() {
        let mut row = vec![false; other.len() + 1];
        for j in (0..=other.len()).rev() {
            row[j] = match (one.get(i), other.get(j)) {
                (None, None) => true,
                (Some(Token::Star), rest) => below[j] || (rest.is_some() && row[j + 1]),
                (rest, Some(Token::Star)) => row[j + 1] || (rest.is_some() && below[j]),
                (Some(a), Some(b)) => a.meets(b) && below[j + 1],
                _ => false,
            };
        }
        below = row;
    }
    below[0]
}

impl Token {
    /// Whether a character is accepted by both. The ranges' ends, and what stands next to
    /// them, are all there is to try: between them nothing changes.
    fn meets(&self, other: &Self) -> bool {
        let edges = |token: &Self| match token {
            Self::Star | Self::Any => vec!['a'],
            Self::Literal(c) => vec![*c],
            Self::Class { ranges, .. } => ranges
                .iter()
                .flat_map(|(low, high)| [*low, *high, step(*low, false), step(*high, true)])
                .chain(['a'])
                .collect(),
        };
        edges(self).into_iter().chain(edges(other)).any(|c| self.accepts(c) && other.accepts(c))
    }

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

/// The character before or after, but for those that no name has.
fn step(c: char, up: bool) -> char {
    let next = if up { u32::from(c) + 1 } else { u32::from(c).wrapping_sub(1) };
    char::from_u32(next).filter(|c| *c != '/').unwrap_or(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_overlap_when_a_name_matches_both() {
        for (one, other, expected) in [
            ("*", "nvme*", true),
            ("nvme*", "nvme*", true),
            ("nvme*", "*1", true),
            ("nvme*", "sd*", false),
            ("disk-?", "disk-[0-9]", true),
            ("disk-[a-c]", "disk-[^a-c]", false),
            ("[a-c]", "[^b]", true),
            ("a*b", "a?c", false),
            ("a*b*c", "*x*", true),
            ("a,b", "c,b", true),
            ("", "*", true),
            ("", "?", false),
            ("ab", "a", false),
            ("[!-0]", "[.-0]", true),
        ] {
            for (one, other) in [(one, other), (other, one)] {
                let parse = |text| NamePattern::parse(text).expect("the pattern is valid");
                assert_eq!(parse(one).overlaps(&parse(other)), expected, "{one} and {other}");
            }
        }
    }

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
