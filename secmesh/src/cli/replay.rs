//! `replay`: alerts from captures.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::output::{Out, Paint, Style, clean};
use super::table::{Table, plain};
use super::time::{count, grouped, rfc3339, rfc3339_us, span};
use super::{CliError, Context, alerts, note};
use crate::detect::Alert;
use crate::replay::{self, Report};

/// `secmesh replay`
pub fn replay(context: &Context, files: &[PathBuf], out: &mut Out<'_>) -> Result<(), CliError> {
    let detect = &context.config()?.detect;
    let mut failed = 0;
    for file in files {
        match replay::replay(file, detect) {
            Ok(report) if out.json => {
                for alert in &report.alerts {
                    out.json(&with_times(alert, file))?;
                }
                for warning in warnings(&report) {
                    note(&format!("warning: {}: {warning}", file.display()));
                }
            }
            Ok(report) => out.text(&text(file, &report, out.paint))?,
            Err(error) => {
                // The other captures are still wanted, before the error.
                out.flush()?;
                note(&format!("error: {error}"));
                failed += 1;
            }
        }
    }
    if failed > 0 {
        return Err(CliError::Failed(format!(
            "{failed} of {} could not be read",
            count(files.len(), "capture")
        )));
    }
    Ok(())
}

/// An alert with its times in both forms, and the capture it comes from.
fn with_times(alert: &Alert, file: &Path) -> Value {
    let mut value = serde_json::to_value(alert).unwrap_or_default();
    if let Value::Object(fields) = &mut value {
        fields.insert("file".to_owned(), file.display().to_string().into());
        for (name, unix_us) in [
            ("raised", alert.raised_unix_us),
            ("first", alert.first_unix_us),
            ("last", alert.last_unix_us),
        ] {
            fields.insert(format!("{name}_rfc3339"), rfc3339_us(unix_us).into());
        }
    }
    value
}

fn text(file: &Path, report: &Report, paint: Paint) -> String {
    let mut out = String::new();
    let name = clean(&file.display().to_string());
    let _ = writeln!(out, "{}", paint.apply(Style::Bold, &name));
    let mut table = Table::new(&[
        "FIRST PACKET",
        "LAST PACKET",
        "SUBJECT",
        "CLASS",
        "CONFIDENCE",
        "ATT&CK",
        "MEASURED",
    ])
    .right(&[4]);
    for alert in &report.alerts {
        table.row(vec![
            plain(rfc3339(alert.first_unix_us)),
            plain(rfc3339(alert.last_unix_us)),
            plain(alert.subject.to_string()),
            plain(alert.class.name()),
            plain(format!("{:.2}", alert.confidence)),
            plain(&alert.attack),
            plain(alerts::measured(alert)),
        ]);
    }
    if !table.is_empty() {
        out.push_str(&table.render(paint));
    }
    let summary = &report.summary;
    let _ = write!(
        out,
        "{}; {} packets ({}{})",
        count(report.alerts.len(), "alert"),
        grouped(report.packets),
        summary.format,
        if summary.gzip { ", gzip" } else { "" }
    );
    if let (Some(first), Some(last)) = (report.first_unix_us, report.last_unix_us) {
        let _ = write!(
            out,
            " from {} to {} ({})",
            rfc3339(first),
            rfc3339(last),
            span(last.saturating_sub(first))
        );
    }
    out.push('\n');
    for warning in warnings(report) {
        let _ = writeln!(out, "{} {warning}", paint.apply(Style::Warning, "warning:"));
    }
    out
}

/// What a reader of the alerts should know of the capture.
fn warnings(report: &Report) -> Vec<String> {
    let summary = &report.summary;
    let mut warnings = Vec::new();
    if let Some(truncation) = &summary.truncated {
        warnings.push(truncation.to_string());
    }
    if summary.skipped_link > 0 {
        warnings.push(format!(
            "{} packets of unsupported link types were skipped",
            grouped(summary.skipped_link)
        ));
    }
    if summary.without_time > 0 {
        warnings.push(format!(
            "{} packets carry no time; that of the packet before them was used",
            grouped(summary.without_time)
        ));
    }
    if !report.malformed.is_empty() {
        let reasons = report
            .malformed
            .iter()
            .map(|(reason, n)| format!("{reason} {}", grouped(*n)));
        warnings.push(format!(
            "malformed packets: {}",
            reasons.collect::<Vec<_>>().join(", ")
        ));
    }
    if report.opaque > 0 {
        warnings.push(format!(
            "{} frames are of no known protocol",
            grouped(report.opaque)
        ));
    }
    if report.contended > 0 {
        warnings.push(format!(
            "{} packets were not accounted: too many sources at once",
            grouped(report.contended)
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::alerts::tests::{T, alert};
    use super::*;
    use crate::sense::capture::{Format, Summary, Truncation};

    fn report() -> Report {
        Report {
            alerts: vec![alert()],
            packets: 12_345,
            malformed: BTreeMap::new(),
            first_unix_us: Some(T - 1_000_000),
            last_unix_us: Some(T + 60_000_000),
            contended: 0,
            opaque: 0,
            summary: Summary {
                format: Format::Pcap,
                gzip: true,
                packets: 12_345,
                bytes: 1,
                skipped_link: 0,
                without_time: 0,
                skipped_blocks: 0,
                truncated: None,
            },
        }
    }

    #[test]
    fn a_capture_is_a_table_and_a_summary() {
        assert_eq!(
            text(Path::new("a.pcap"), &report(), Paint(false)),
            "\
a.pcap
FIRST PACKET              LAST PACKET               SUBJECT      CLASS      CONFIDENCE  ATT&CK     MEASURED
2023-11-14T22:13:19.500Z  2023-11-14T22:13:20.000Z  203.0.113.9  syn_flood        0.75  T1499.001  packets in window 400 (threshold 200)
1 alert; 12,345 packets (pcap, gzip) from 2023-11-14T22:13:19.000Z to 2023-11-14T22:14:20.000Z (1 min 1 s)
"
        );
        let none = Report {
            alerts: Vec::new(),
            first_unix_us: None,
            last_unix_us: None,
            packets: 0,
            ..report()
        };
        assert_eq!(
            text(Path::new("a"), &none, Paint(false)),
            "a\n0 alerts; 0 packets (pcap, gzip)\n"
        );
    }

    #[test]
    fn what_is_wrong_with_a_capture_is_said() {
        let mut report = report();
        report.malformed.insert("ip_header", 3);
        report.contended = 1_000;
        report.opaque = 4;
        report.summary.skipped_link = 2;
        report.summary.without_time = 1;
        report.summary.truncated = Some(Truncation {
            offset: 9,
            packets: 7,
        });
        let text = text(Path::new("a"), &report, Paint(false));
        for part in [
            "warning: the capture is cut short",
            "2 packets of unsupported",
            "1 packets carry no time",
            "malformed packets: ip_header 3",
            "4 frames are of no known",
            "1,000 packets were not accounted",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn json_has_every_field_and_both_forms_of_time() {
        let value = with_times(&alert(), Path::new("a.pcap"));
        assert_eq!(value["subject"], "203.0.113.9");
        assert_eq!(value["class"], "syn_flood");
        assert_eq!(value["confidence"], 0.75);
        assert_eq!(value["first_unix_us"], T - 500_000);
        assert_eq!(value["first_rfc3339"], "2023-11-14T22:13:19.500000Z");
        assert_eq!(value["last_rfc3339"], "2023-11-14T22:13:20.000000Z");
        assert_eq!(value["file"], "a.pcap");
        let alert_fields = serde_json::to_value(alert()).unwrap();
        for (name, field) in alert_fields.as_object().unwrap() {
            assert_eq!(&value[name], field, "{name}");
        }
    }
}
