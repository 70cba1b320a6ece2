//! The two text formats of a scrape. The client library writes OpenMetrics 1.0; what
//! Prometheus' own format 0.0.4 calls otherwise is changed here, to what the client for
//! Go writes.

/// A text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format 0.0.4, as the Go provisioner writes it.
    Prometheus,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Format {
    /// The format that the header `Accept` of a request asks for: OpenMetrics 1.0.0 where
    /// that is liked better than plain text.
    #[must_use]
    pub fn accepted(header: &str) -> Self {
        let (mut plain, mut open) = (0.0, 0.0);
        for range in header.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
            let mut weight = 1.0_f32;
            let mut known_version = true;
            for parameter in parts {
                match parameter.split_once('=').map(|(name, value)| (name.trim(), value.trim().trim_matches('"'))) {
                    Some(("q", value)) => weight = value.parse().unwrap_or(0.0),
                    Some(("version", value)) => known_version = value == "1.0.0",
                    _ => {}
                }
            }
            match kind.as_str() {
                "application/openmetrics-text" if known_version => open = weight.max(open),
                "text/plain" | "text/*" | "*/*" => plain = weight.max(plain),
                _ => {}
            }
        }
        if open > plain { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// The value of the header `Content-Type`.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// A text in OpenMetrics, in the format 0.0.4: counters are named in full where they are
/// described, whole bounds of buckets have no fraction, and nothing marks the end.
pub fn to_prometheus(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let mut help = None;
    for line in openmetrics.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let suffix = if kind == "counter" { "_total" } else { "" };
            if let Some((_, words)) = help.take() {
                push(&mut text, &["# HELP ", name, suffix, " ", words]);
            }
            push(&mut text, &["# TYPE ", name, suffix, " ", kind]);
        } else if let Some((start, bound, rest)) = bucket(line)
            && let Some(whole) = bound.strip_suffix(".0")
        {
            push(&mut text, &[start, whole, rest]);
        } else if !line.starts_with('#') {
            push(&mut text, &[line]);
        }
    }
    text
}

fn push(text: &mut String, parts: &[&str]) {
    parts.iter().for_each(|part| text.push_str(part));
    text.push('\n');
}

/// A line of a bucket: what is before its bound, the bound, and what is after it. Quotes
/// within a label's value are escaped, so that none can look like the label.
fn bucket(line: &str) -> Option<(&str, &str, &str)> {
    let start = line.find("{le=\"").or_else(|| line.find(",le=\""))? + "{le=\"".len();
    let end = start + line[start..].find('"')?;
    Some((&line[..start], &line[start..end], &line[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prometheus_gets_the_format_that_it_likes_best() {
        let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                          text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(Format::accepted(prometheus), Format::OpenMetrics);
        assert_eq!(Format::accepted("application/openmetrics-text"), Format::OpenMetrics);
        for plain in [
            "",
            "*/*",
            "text/html, */*;q=0.8",
            "text/plain, application/openmetrics-text;q=0.5",
            "application/openmetrics-text; version=2.0.0, */*;q=0.1",
            "application/openmetrics-text;q=0",
        ] {
            assert_eq!(Format::accepted(plain), Format::Prometheus, "{plain}");
        }
    }

    #[test]
    fn only_names_bounds_and_the_end_differ() {
        let open = "# HELP a Words with a_total in them.\n# TYPE a counter\na_total{x=\"# TYPE\"} 1\n\
                    # HELP b Words.\n# TYPE b histogram\nb_sum 0.5\nb_count 1\n\
                    b_bucket{le=\"0.5\",x=\"{le=\\\"1.0\\\"\"} 1\nb_bucket{le=\"10.0\"} 1\nb_bucket{x=\"y\",le=\"+Inf\"} 1\n\
                    # HELP c Words.\n# TYPE c gauge\n# EOF\n";
        let plain = "# HELP a_total Words with a_total in them.\n# TYPE a_total counter\na_total{x=\"# TYPE\"} 1\n\
                     # HELP b Words.\n# TYPE b histogram\nb_sum 0.5\nb_count 1\n\
                     b_bucket{le=\"0.5\",x=\"{le=\\\"1.0\\\"\"} 1\nb_bucket{le=\"10\"} 1\nb_bucket{x=\"y\",le=\"+Inf\"} 1\n\
                     # HELP c Words.\n# TYPE c gauge\n";
        assert_eq!(to_prometheus(open), plain);
    }
}
