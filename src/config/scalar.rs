//! What a scalar means: as the YAML library of the Go provisioner reads it, which is YAML
//! 1.1 with changes, and as that library writes it where text is wanted: `1.20` is the
//! number 1.2, and the label `1.2`. tests/fixtures/go-config/table.json has what it does.

/// A scalar's meaning.
#[derive(Clone, Debug, PartialEq)]
pub enum Scalar {
    /// Nothing: `null`, `~`, or no text at all.
    Null,
    /// `true`, `yes`, `on`, `y`, and their opposites.
    Bool(bool),
    /// A whole number, in any of YAML's bases.
    Int(i64),
    /// A whole number that is too great for the others.
    Big(u64),
    /// Any other number.
    Float(f64),
    /// Text.
    Text(String),
}

/// Finds the meaning of a scalar. `plain`: it has no quotes.
///
/// # Errors
/// The text is not what its tag says.
pub fn resolve(tag: Option<&str>, text: &str, plain: bool) -> Result<Scalar, String> {
    let by_text = || Ok(Scalar::Text(text.to_owned()));
    let mismatch = |tag: &str| Err(format!("{text:?} is no {tag}"));
    match tag {
        None if plain => Ok(meaning(text)),
        Some("!!binary") => {
            Err("binary data can't be used here; write the text itself, without the tag !!binary".to_owned())
        }
        Some(tag @ ("!!bool" | "!!int" | "!!float" | "!!null")) => match (tag, meaning(text)) {
            ("!!float", Scalar::Int(number)) => Ok(Scalar::Float(number as f64)),
            ("!!bool", found @ Scalar::Bool(_))
            | ("!!int", found @ (Scalar::Int(_) | Scalar::Big(_)))
            | ("!!float", found @ Scalar::Float(_))
            | ("!!null", found @ Scalar::Null) => Ok(found),
            (tag, _) => mismatch(tag),
        },
        None | Some(_) => by_text(),
    }
}

/// What text without quotes and tag means.
fn meaning(text: &str) -> Scalar {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Scalar::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => return Scalar::Bool(true),
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Scalar::Bool(false);
        }
        ".nan" | ".NaN" | ".NAN" => return Scalar::Float(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => return Scalar::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => return Scalar::Float(f64::NEG_INFINITY),
        _ => {}
    }
    let float = |text: &str| text.parse().ok().filter(|number: &f64| number.is_finite()).map(Scalar::Float);
    let number = match text.as_bytes()[0] {
        b'.' if is_float(text) => float(text),
        b'0'..=b'9' | b'+' | b'-' => {
            let plain = text.replace('_', "");
            whole(&plain).or_else(|| is_float(&plain).then(|| float(&plain)).flatten())
        }
        _ => None,
    };
    number.unwrap_or_else(|| Scalar::Text(text.to_owned()))
}

/// A whole number as Go writes it: decimal, `0x`, `0o` or only `0`, `0b`.
fn whole(text: &str) -> Option<Scalar> {
    let (sign, digits) = match text.as_bytes().first()? {
        b'-' => ("-", &text[1..]),
        b'+' => ("", &text[1..]),
        _ => ("", text),
    };
    let (base, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    if !digits.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return None;
    }
    let signed = i64::from_str_radix(&format!("{sign}{digits}"), base).ok().map(Scalar::Int);
    let is_unsigned = !text.starts_with(['-', '+']);
    signed.or_else(|| u64::from_str_radix(digits, base).ok().filter(|_| is_unsigned).map(Scalar::Big))
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`
fn is_float(text: &str) -> bool {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let text = text.strip_prefix(['-', '+']).unwrap_or(text);
    let before = digits(text);
    let mut rest = &text[before..];
    if let Some(fraction) = rest.strip_prefix('.') {
        let after = digits(fraction);
        if before + after == 0 {
            return false;
        }
        rest = &fraction[after..];
    } else if before == 0 {
        return false;
    }
    match rest.strip_prefix(['e', 'E']) {
        None => rest.is_empty(),
        Some(exponent) => {
            let exponent = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
            !exponent.is_empty() && digits(exponent) == exponent.len()
        }
    }
}

impl Scalar {
    /// The text where text is wanted: what Go's library makes of it. Nothing is no text.
    #[must_use]
    pub fn into_text(self) -> String {
        match self {
            Self::Null => String::new(),
            Self::Bool(value) => value.to_string(),
            Self::Int(number) => number.to_string(),
            Self::Big(number) => number.to_string(),
            Self::Float(number) => float_text(number),
            Self::Text(text) => text,
        }
    }

    /// The text as the key of a map; none where Go's library has no such key.
    #[must_use]
    pub fn into_key(self) -> Option<String> {
        match self {
            Self::Null | Self::Big(_) => None,
            Self::Float(number) => Some(match float_text(number).as_str() {
                "+Inf" => ".inf".to_owned(),
                "-Inf" => "-.inf".to_owned(),
                "NaN" => ".nan".to_owned(),
                text => text.to_owned(),
            }),
            scalar => Some(scalar.into_text()),
        }
    }
}

/// The shortest text that is the same number in 32 bits, with an exponent when that is
/// below -4 or above 5.
fn float_text(number: f64) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "Go's library writes no more than 32 bits of it")]
    let number = number as f32;
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let text = format!("{number:e}");
    let (mantissa, exponent) = text.split_once('e').expect("an exponent was asked for");
    let exponent: i32 = exponent.parse().expect("an exponent is a number");
    if !(-4..6).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs())
    } else {
        number.to_string()
    }
}
