//! Connections from SYN to TIME-WAIT, over a wire that loses nothing.

mod support;

use support::*;
use userspace_tcp::{CloseReason, Config, Status};

#[test]
fn a_connection_carries_bytes_both_ways_and_ends_in_order() {
    for tuple in [v4(40_000), v6(40_000)] {
        let mut pair = Pair::new();
        let (client, server) = pair.open(tuple);
        assert_eq!((pair.client.stack.tag(client), pair.server.stack.tag(server)), (5, 7));

        let request = pattern(100);
        assert_eq!(pair.client.send(pair.now, client, &request), 100);
        pair.pass(millis(20));
        assert_eq!(pair.server.read(pair.now, server), request);
        assert_eq!(pair.client.stack.queued(client), 0, "acknowledged");

        let response = pattern(1_000_000);
        let mut received = vec![];
        let mut sent = 0;
        while received.len() < response.len() {
            sent += pair.server.send(pair.now, server, &response[sent..]);
            pair.pass(millis(1));
            received.extend(pair.client.read(pair.now, client));
        }
        assert!(received == response, "every byte in order");

        pair.client.close(pair.now, client);
        pair.exchange();
        assert_eq!(pair.server.status(server), Status::Open { may_receive: false, may_send: true });
        pair.server.close(pair.now, server);
        pair.exchange();
        assert_eq!(pair.client.status(client), Status::Closed(CloseReason::Finished));
        assert_eq!(pair.server.status(server), Status::Closed(CloseReason::Finished));
        assert_eq!(pair.client.stack.census().time_wait, 1);
        assert_eq!(pair.server.stack.census().time_wait, 0, "who closes last needs not wait");

        pair.client.stack.release(client);
        pair.server.stack.release(server);
        assert!(pair.client.stack.contains(&tuple));
        pair.pass(Config::default().time_wait);
        pair.client.assert_empty();
        pair.server.assert_empty();
        assert_eq!(pair.client.status(client), Status::Closed(CloseReason::Released));
    }
}
