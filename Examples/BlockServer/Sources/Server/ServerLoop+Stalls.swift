// SPDX-License-Identifier: Apache-2.0
//
// Clients that hold memory and do not do their part: a payload that does not arrive, and, while
// others wait for memory, replies that are not taken. They are looked at only while there is such a
// payload, or somebody waits.

import DispatchAIO
import ServerSupport

extension Connection {
  /// Sets the time by which payload has to be there that has not arrived in one go: that of one
  /// buffer, after which it is set anew.
  func expectPayload() {
    guard payloadDeadline == nil, let limit = loop.stallLimit else { return }
    payloadDeadline = ContinuousClock.now + limit
    loop.planStallCheck()
  }

  /// Closes if the client has stalled.
  func checkStall(
    _ now: ContinuousClock.Instant, _ limit: Duration, othersWait: Bool
  ) {
    if let payloadDeadline, now > payloadDeadline {
      return close("a write's payload has not arrived within \(limit) (--stall-limit)")
    }
    guard !outbox.isEmpty else { return }
    guard let lastProgress, lastProgress.sent == bytesSent else {
      lastProgress = (bytesSent, now)
      return
    }
    if othersWait && now > lastProgress.at + limit {
      close("has taken no reply for \(limit), and others wait for memory (--stall-limit)")
    }
  }
}

extension ServerLoop {
  /// Makes sure that stalled clients are looked for.
  func planStallCheck() {
    guard !isStallCheckPlanned, let limit = stallLimit else { return }
    isStallCheckPlanned = true
    do throws(AIOError) {
      _ = try context.once(after: max(limit / 8, .milliseconds(10))) { [unowned self] in
        checkStalls(limit)
      }
    } catch {
      // Without a timer the next payload plans it.
      isStallCheckPlanned = false
    }
  }

  private func checkStalls(_ limit: Duration) {
    isStallCheckPlanned = false
    let now = ContinuousClock.now
    let othersWait = memory.waiting.contains { !$0.isClosed }
    var isNeeded = othersWait
    for connection in Array(connections.values) {
      connection.checkStall(now, limit, othersWait: othersWait)
      if connection.payloadDeadline != nil { isNeeded = true }
    }
    if isNeeded { planStallCheck() }
  }
}
