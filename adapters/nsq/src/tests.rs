#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use super::*;

#[test]
fn connections_introduce_themselves_as_recorded_but_for_the_output_buffer() {
    let recorded = r#"{"client_id":"vm","deflate":false,"deflate_level":6,"feature_negotiation":true,"heartbeat_interval":30000,"hostname":"vm","long_id":"vm","msg_timeout":0,"output_buffer_size":-1,"output_buffer_timeout":-1,"sample_rate":0,"short_id":"vm","snappy":false,"tls_v1":false,"user_agent":"go-nsq/1.0.7"}"#;
    let ours = identity("vm", Config::new(["x:1"]).heartbeat, "go-nsq/1.0.7");
    assert_eq!(String::from_utf8(ours).unwrap(), recorded);
    let qualified = identity("vm.example.org", Duration::from_secs(1), "x");
    let qualified = String::from_utf8(qualified).unwrap();
    assert!(qualified.contains(r#""client_id":"vm","#) && qualified.contains(r#""hostname":"vm.example.org","#));
}

#[test]
fn a_bad_configuration_is_an_error_that_says_what_is_allowed() {
    let error = |config| Nsq::new(config).unwrap_err().to_string();
    assert!(error(Config::new([""; 0])).contains("127.0.0.1:4150"));
    for address in [
        "",
        "localhost",
        ":4150",
        "localhost:",
        "localhost:0",
        "localhost:70000",
        "localhost:nsq",
        "tcp://",
        "http://localhost:4150/",
    ] {
        assert!(
            error(Config::new([address])).contains("such as 127.0.0.1:4150"),
            "{address}"
        );
    }
    assert!(error(Config::new(["a:1", "b:1", "a:1"])).contains("twice"));
    assert!(error(Config::new(["a:1", "tcp://a:1"])).contains("twice"));
    let nsq = Nsq::new(Config::new(["tcp://localhost:4150"])).unwrap();
    assert_eq!(nsq.status().nsqds()[0].address, "localhost:4150");
    let with = |change: fn(&mut Config)| {
        let mut config = Config::new(["localhost:4150"]);
        change(&mut config);
        config
    };
    assert!(error(with(|it| it.heartbeat = Duration::from_millis(999))).contains("heartbeat"));
    assert!(error(with(|it| it.heartbeat = Duration::MAX)).contains("heartbeat"));
    assert!(error(with(|it| it.timeout = Duration::ZERO)).contains("timeout"));
    assert!(error(with(|it| it.timeout = Duration::MAX)).contains("timeout"));
    let second = Duration::from_secs(1);
    assert!(error(with(|it| it.backoff = Duration::ZERO..=Duration::from_secs(1))).contains("backoff"));
    let (long, short) = (2 * second, second);
    let mut backwards = with(|_| {});
    backwards.backoff = RangeInclusive::new(long, short);
    assert!(error(backwards).contains("backoff"));
    assert!(error(with(|it| it.max_message_bytes = usize::MAX)).contains("max_message_bytes"));
    assert!(Nsq::new(with(|_| {})).is_ok());
    assert!(Nsq::new(Config::new(["[::1]:4150", "nsqd.example.org:4150"])).is_ok());
}

#[test]
fn names_are_checked_before_anything_starts() {
    let nsq = Nsq::new(Config::new(["localhost:4150"])).unwrap();
    assert_eq!(nsq.check_topic("items"), Ok(()));
    assert_eq!(nsq.check_topic("caf#ephemeral"), Ok(()));
    for name in ["my items", "a/b", "", "é", &"x".repeat(65)] {
        let error = nsq.check_topic(name).unwrap_err();
        assert_eq!(error.topic, name);
        assert!(
            error.to_string().contains("NSQ takes 1 to 64 of the characters"),
            "{error}"
        );
    }
}
