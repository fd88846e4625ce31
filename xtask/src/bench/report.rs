//! From samples to a table: medians over the rounds, added CPU, ratios.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::cpu::Spent;
use super::echo::Echo;
use super::peer::Peer;
use super::work::{Outcome, Work};
use crate::lab::OFFLOADS_OFF;
use crate::table;

/// Everything measured in one run.
#[derive(Debug)]
pub(super) struct Report {
    queues: u32,
    rounds: usize,
    busy: f64,
    samples: Vec<(Peer, Work, Outcome, Spent)>,
    echoes: Vec<Echo>,
}

/// The figures for one peer and one kind of work: medians over the rounds. Times in microseconds
/// for each unit of work.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Row {
    peer: Peer,
    work: Work,
    rate: f64,
    machine_us: f64,
    added_us: Option<f64>,
    proxy_user_us: f64,
    proxy_system_us: f64,
    p50_us: Option<f64>,
    p99_us: Option<f64>,
    errors: u64,
    stolen_s: f64,
}

impl Report {
    pub(super) fn new(queues: u32, rounds: usize) -> Report {
        Report { queues, rounds, busy: 0.0, samples: Vec::new(), echoes: Vec::new() }
    }

    /// Another look at how busy the machine is without us, from 0 to 1; the worst one counts.
    pub(super) fn busy(&mut self, share: f64) {
        self.busy = self.busy.max(share);
    }

    pub(super) fn add(&mut self, peer: Peer, work: Work, outcome: Outcome, spent: Spent) {
        self.samples.push((peer, work, outcome, spent));
    }

    pub(super) fn echo(&mut self, echo: Echo) {
        self.echoes.push(echo);
    }

    pub(super) fn render(&self) -> String {
        let mut text = String::new();
        for work in Work::ALL {
            let rows = self.rows(work);
            let _ = writeln!(text, "### {}\n", work.title());
            let cells: Vec<Vec<String>> = rows.iter().map(|row| row.cells()).collect();
            text += &table::markdown(&header(work), &cells);
            text.push('\n');
            if let Some(ratio) = ratio(&rows, Peer::is_rival) {
                let target = work.target();
                let _ = writeln!(
                    text,
                    "headgate's added CPU is {ratio:.2} of the better rival's (target {target:.2})."
                );
            }
            // The others read requests, and need fewer connections to the origin for it.
            if let Some(ratio) = ratio(&rows, |peer| peer == Peer::HaproxyTcp) {
                let _ = writeln!(
                    text,
                    "headgate's added CPU is {ratio:.2} of HAProxy's in the same mode, tcp."
                );
            }
            text.push('\n');
        }
        if !self.echoes.is_empty() {
            text += &self.echo_table();
        }
        let _ = writeln!(
            text,
            "{} queue(s) per interface; medians of {} round(s), peers in turn, each running alone; every \
             end `{}`.\nCPU is that of the whole machine, client and origin included (their part is the \
             row \"direct\"). Before and after the run the machine was up to {:.0} % busy{}.",
            self.queues,
            self.rounds,
            OFFLOADS_OFF.join(" "),
            self.busy * 100.0,
            if self.busy > 0.05 { ": NOT QUIET, the figures are doubtful" } else { "" }
        );
        text
    }

    pub(super) fn json(&self) -> Value {
        let rows: Vec<Row> = Work::ALL.into_iter().flat_map(|work| self.rows(work)).collect();
        let ratios: Vec<Value> = Work::ALL
            .into_iter()
            .map(|work| {
                let rows = self.rows(work);
                json!({
                    "work": work,
                    "added-cpu-ratio": ratio(&rows, Peer::is_rival),
                    "added-cpu-ratio-same-mode": ratio(&rows, |peer| peer == Peer::HaproxyTcp),
                    "target": work.target(),
                })
            })
            .collect();
        json!({
            "queues": self.queues,
            "rounds": self.rounds,
            "offloads": OFFLOADS_OFF.join(" "),
            "busy": self.busy,
            "rows": rows,
            "ratios": ratios,
            "af-xdp-echo": self.echoes,
        })
    }

    /// One row for each peer that did this work, in the order of measurement.
    fn rows(&self, work: Work) -> Vec<Row> {
        let mut peers: Vec<Peer> = Vec::new();
        for (peer, ..) in self.samples.iter().filter(|sample| sample.1 == work) {
            if !peers.contains(peer) {
                peers.push(*peer);
            }
        }
        let mut rows: Vec<Row> = peers.into_iter().map(|peer| self.row(peer, work)).collect();
        let direct = rows.iter().find(|row| row.peer == Peer::Direct).map(|row| row.machine_us);
        for row in rows.iter_mut().filter(|row| row.peer != Peer::Direct) {
            row.added_us = direct.map(|direct| row.machine_us - direct);
        }
        rows
    }

    fn row(&self, peer: Peer, work: Work) -> Row {
        let runs: Vec<(Outcome, Spent)> = self
            .samples
            .iter()
            .filter(|(p, w, ..)| (*p, *w) == (peer, work))
            .map(|(_, _, outcome, spent)| (*outcome, *spent))
            .collect();
        let each = |figure: &dyn Fn(&Outcome, &Spent) -> f64| {
            median(runs.iter().map(|(outcome, spent)| figure(outcome, spent)).collect())
        };
        let latency = |pick: fn((Duration, Duration)) -> Duration| {
            let known: Vec<f64> =
                runs.iter().filter_map(|(o, _)| o.latency).map(|l| micros(pick(l))).collect();
            (!known.is_empty()).then(|| median(known))
        };
        Row {
            peer,
            work,
            rate: each(&|outcome, _| outcome.rate),
            machine_us: each(&|outcome, spent| micros(spent.machine) / outcome.units),
            added_us: None,
            proxy_user_us: each(&|outcome, spent| micros(spent.user) / outcome.units),
            proxy_system_us: each(&|outcome, spent| micros(spent.system) / outcome.units),
            p50_us: latency(|l| l.0),
            p99_us: latency(|l| l.1),
            errors: runs.iter().map(|(outcome, _)| outcome.errors).sum(),
            stolen_s: runs.iter().map(|(_, spent)| spent.stolen.as_secs_f64()).sum(),
        }
    }

    fn echo_table(&self) -> String {
        let rows: Vec<Vec<String>> = self
            .echoes
            .iter()
            .map(|echo| match &echo.outcome {
                Ok(counts) => vec![
                    format!("AF_XDP echo, {} B", echo.size),
                    format!("{:.3}", counts.sent as f64 / counts.seconds / 1e6),
                    format!("{:.3}", counts.received as f64 / counts.seconds / 1e6),
                    format!("{:.3}", counts.returned as f64 / counts.seconds / 1e6),
                ],
                Err(why) => {
                    let why = why.lines().next().unwrap_or_default();
                    vec![format!("AF_XDP echo, {} B", echo.size), format!("not measured: {why}")]
                }
            })
            .collect();
        let header =
            ["frames there and back, one queue", "sent, Mpps", "received, Mpps", "sent back, Mpps"];
        format!("### bare AF_XDP\n\n{}\n", table::markdown(&header, &rows))
    }
}

impl Row {
    fn cells(&self) -> Vec<String> {
        let or_dash = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
        };
        let of_proxy = |value: f64| match self.peer {
            Peer::Direct => "–".to_owned(),
            _ => format!("{value:.1}"),
        };
        let mut cells = vec![
            self.peer.name().to_owned(),
            format!("{:.0}", self.rate),
            format!("{:.1}", self.machine_us),
            or_dash(self.added_us, 1),
            of_proxy(self.proxy_user_us),
            of_proxy(self.proxy_system_us),
        ];
        if self.work != Work::Bulk {
            cells.push(or_dash(self.p50_us.map(|us| us / 1000.0), 2));
            cells.push(or_dash(self.p99_us.map(|us| us / 1000.0), 2));
        }
        cells.push(self.errors.to_string());
        cells
    }
}

fn header(work: Work) -> Vec<&'static str> {
    let rate = match work {
        Work::KeepAlive => "requests/s",
        Work::NewConnections => "connections/s",
        Work::Bulk => "MB/s",
    };
    let mut header = vec!["through", rate];
    header.extend(match work.unit() {
        "MB" => ["CPU, µs/MB", "added, µs/MB"],
        "connection" => ["CPU, µs/connection", "added, µs/connection"],
        _ => ["CPU, µs/request", "added, µs/request"],
    });
    header.extend(["proxy user, µs", "proxy system, µs"]);
    if work != Work::Bulk {
        header.extend(["p50, ms", "p99, ms"]);
    }
    header.push("errors");
    header
}

/// headgate's added CPU over that of the one who adds least among those `beside` names.
fn ratio(rows: &[Row], beside: fn(Peer) -> bool) -> Option<f64> {
    let own = rows.iter().find(|row| row.peer == Peer::Headgate)?.added_us?;
    let best = rows
        .iter()
        .filter(|row| beside(row.peer))
        .filter_map(|row| row.added_us)
        .min_by(f64::total_cmp)?;
    // Noise larger than the cost itself makes differences that mean nothing.
    (own > 0.0 && best > 0.0).then(|| own / best)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(report: &mut Report, peer: Peer, rate: f64, machine_ms: u64) {
        let millis = Duration::from_millis;
        let latency = Some((Duration::from_micros(500), millis(2)));
        let outcome = Outcome { units: 1000.0, rate, latency, errors: 1 };
        let spent = Spent { machine: millis(machine_ms), user: millis(3), ..Spent::default() };
        report.add(peer, Work::KeepAlive, outcome, spent);
    }

    #[test]
    fn added_cpu_is_the_median_minus_the_direct_median() {
        let mut report = Report::new(1, 3);
        for (direct, headgate) in [(14, 24), (15, 25), (90, 26)] {
            add(&mut report, Peer::Direct, 70_000.0, direct);
            add(&mut report, Peer::Headgate, 60_000.0, headgate);
            add(&mut report, Peer::Haproxy, 40_000.0, 35);
            add(&mut report, Peer::Nginx, 50_000.0, 40);
        }
        let rows = report.rows(Work::KeepAlive);
        assert_eq!(
            rows.iter().map(|row| row.added_us).collect::<Vec<_>>(),
            [None, Some(10.0), Some(20.0), Some(25.0)]
        );
        assert_eq!(ratio(&rows, Peer::is_rival), Some(0.5));
        assert_eq!(ratio(&rows, |peer| peer == Peer::HaproxyTcp), None);
        assert_eq!((rows[1].errors, rows[1].proxy_user_us, rows[1].p99_us), (3, 3.0, Some(2000.0)));
        let text = report.render();
        assert!(text.contains("headgate's added CPU is 0.50 of the better rival's (target 0.50)"));
        assert_eq!(report.json()["ratios"][0]["added-cpu-ratio"], 0.5);
        assert_eq!(report.json()["ratios"][1]["added-cpu-ratio"], Value::Null);
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(Vec::new()).is_nan());
    }

    #[test]
    fn a_noisy_machine_is_told() {
        let mut report = Report::new(1, 1);
        report.busy(0.01);
        assert!(!report.render().contains("NOT QUIET"));
        report.busy(0.5);
        report.busy(0.02);
        assert!(report.render().contains("50 % busy: NOT QUIET"));
    }
}
