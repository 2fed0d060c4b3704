//! The program as people run it: outputs and exit codes.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use loadtest::report::Report;

use crate::support::{Fault, Server};

const SCENARIO: &str = r#"
    name = "cli"
    [checks]
    table = "leads"
    column = "name"
    [[stage]]
    kind = "constant"
    duration = "30s"
    level = 100
    [[operation]]
    name = "list"
    path = "/leads?limit=5"
"#;

/// A folder of its own for each test, removed afterwards.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("ringfence-loadtest-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn environment(&self, server: &Server) -> PathBuf {
        let [first, second] = server.routers;
        self.write(
            "local.env",
            &format!(
                "RINGFENCE_URL=http://{first}\nRINGFENCE_ROUTER_URLS=http://{first},http://{second}\n\
                 RINGFENCE_KEY_ACME=key-acme\nRINGFENCE_KEY_GLOBEX=key-globex\n"
            ),
        )
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringfence-loadtest"));
    command.stdin(Stdio::null());
    command
}

fn run(scenario: &Path, environment: &Path, more: &[&str]) -> Output {
    program()
        .arg("run")
        .arg(scenario)
        .arg("--env")
        .arg(environment)
        .args(["--metrics", "off", "--duration", "1s"])
        .args(more)
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn a_run_prints_and_writes_its_report() {
    let server = Server::start(Fault::None);
    let folder = Folder::new("outputs");
    let (scenario, environment) = (
        folder.write("s.toml", SCENARIO),
        folder.environment(&server),
    );
    let files = ["r.json", "r.csv", "r.html"].map(|name| folder.0.join(name).display().to_string());
    let output = run(
        &scenario,
        &environment,
        &[
            "--check", "--json", &files[0], "--csv", &files[1], "--html", &files[2],
        ],
    );
    let printed = text(&output);
    assert_eq!(output.status.code(), Some(0), "{printed}");
    for part in [
        "operation",
        "list",
        "total",
        "arrivals: 100 due",
        "check: no violation",
    ] {
        assert!(printed.contains(part), "{part} in {printed}");
    }
    // Not a terminal: plain lines, no control characters.
    assert!(
        printed.contains("   1 s  ") && !printed.contains('\x1b'),
        "{printed}"
    );
    let report = Report::read(Path::new(&files[0])).unwrap();
    assert_eq!((report.total.expected, report.tenants), (100, 2));
    assert!(
        std::fs::read_to_string(&files[1])
            .unwrap()
            .starts_with("second,due,")
    );
    assert!(
        std::fs::read_to_string(&files[2])
            .unwrap()
            .contains("</html>")
    );

    let comparison = program()
        .arg("compare")
        .args([&files[0], &files[0]])
        .output()
        .unwrap();
    assert!(
        text(&comparison).contains("answers per second"),
        "{}",
        text(&comparison)
    );
}

#[test]
fn exit_codes_say_what_happened() {
    let folder = Folder::new("codes");
    let server = Server::start(Fault::None);
    let environment = folder.environment(&server);
    let gate = "[[gate]]\nmetric = \"rate_per_s\"\nmin = 100000\n";
    let missed = run(
        &folder.write("gate.toml", &format!("{SCENARIO}{gate}")),
        &environment,
        &[],
    );
    assert_eq!(missed.status.code(), Some(99), "{}", text(&missed));
    assert!(
        text(&missed).contains("threshold MISSED: rate_per_s ≥ 100000"),
        "{}",
        text(&missed)
    );

    let bad = run(&folder.write("bad.toml", "nmae = 1"), &environment, &[]);
    assert_eq!(bad.status.code(), Some(104));
    assert!(
        text(&bad).contains("bad.toml:1:1: unknown field `nmae`"),
        "{}",
        text(&bad)
    );

    let nowhere = run(
        &folder.write("s.toml", SCENARIO),
        Path::new("/no/such.env"),
        &[],
    );
    assert_eq!(nowhere.status.code(), Some(1));

    let leaking = Server::start(Fault::Leak(10));
    let scenario = folder.write("s.toml", SCENARIO);
    let leaked = run(&scenario, &folder.environment(&leaking), &["--check"]);
    assert_eq!(leaked.status.code(), Some(81), "{}", text(&leaked));
    assert!(text(&leaked).contains("VIOLATION: "), "{}", text(&leaked));

    let losing = Server::start(Fault::LoseUpdate(1));
    let lost = run(&scenario, &folder.environment(&losing), &["--check"]);
    assert_eq!(lost.status.code(), Some(80), "{}", text(&lost));
}

#[test]
fn a_url_alone_drives_a_service_without_keys() {
    let server = Server::start(Fault::None);
    let folder = Folder::new("url");
    let output = program()
        .arg("run")
        .arg(folder.write("s.toml", SCENARIO))
        .args([
            "--url",
            &format!("http://{}", server.routers[0]),
            "--duration",
            "1s",
            "--metrics",
            "off",
            "-q",
        ])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
}

#[test]
fn a_log_is_replayed_at_its_speed() {
    let server = Server::start(Fault::None);
    let folder = Folder::new("replay");
    let lines: String = (0..40)
        .map(|n| format!("1.2.3.4 - t{} [10/Oct/2000:13:55:{:02} +0000] \"GET /rest/v1/leads?limit={n} HTTP/1.1\" 200 5 \"-\" \"-\"\n", n % 3, n / 10))
        .collect();
    let json = folder.0.join("r.json");
    let output = program()
        .arg("replay")
        .arg(folder.write("access.log", &format!("{lines}not a request\n")))
        .args([
            "--speed",
            "4",
            "--map",
            "t1=globex",
            "--metrics",
            "off",
            "--quiet",
        ])
        .arg("--env")
        .arg(folder.environment(&server))
        .arg("--json")
        .arg(&json)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let report = Report::read(&json).unwrap();
    assert_eq!(
        (report.total.expected, report.model.as_str()),
        (40, "replay")
    );
    // Forty requests over 3.9 s, four times as fast.
    assert!(
        (0.9..1.05).contains(&report.planned_seconds),
        "{}",
        report.planned_seconds
    );
    assert!(
        report.description.contains("1 other lines"),
        "{}",
        report.description
    );
}

/// A child that is killed when a test ends early.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn http(port: u16, request: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.write_all(format!("{request}\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// Asks until the answer holds a text.
fn until(port: u16, request: &str, wanted: &str) -> String {
    let begin = Instant::now();
    loop {
        let answer = http(port, request).unwrap_or_default();
        if answer.contains(wanted) {
            return answer;
        }
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "{wanted} never came: {answer}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn metrics_and_marks_while_running_and_a_report_after_an_interrupt() {
    let server = Server::start(Fault::None);
    let folder = Folder::new("interrupt");
    let json = folder.0.join("r.json");
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let child = program()
        .arg("run")
        .arg(folder.write("s.toml", SCENARIO))
        .args([
            "--metrics",
            &format!("127.0.0.1:{port}"),
            "--quiet",
            "--env",
        ])
        .arg(folder.environment(&server))
        .arg("--json")
        .arg(&json)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut running = Running(child);
    let close = "Host: x\r\nConnection: close\r\n";
    until(
        port,
        &format!("GET /metrics HTTP/1.1\r\n{close}"),
        "loadtest_latency_seconds_bucket{le=\"1.024\"} 1",
    );
    let marked = http(
        port,
        &format!("POST /mark HTTP/1.1\r\nContent-Length: 4\r\n{close}\r\nboom"),
    );
    assert!(marked.is_some_and(|answer| answer.starts_with("HTTP/1.1 204")));
    let pid = rustix::process::Pid::from_child(&running.0);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(running.0.wait().unwrap().code(), Some(105));
    let report = Report::read(&json).unwrap();
    assert!(report.interrupted && report.seconds < 29.0 && report.total.expected > 50);
    assert!(
        report.marks.iter().any(|mark| mark.text == "boom"),
        "{:?}",
        report.marks
    );
}
