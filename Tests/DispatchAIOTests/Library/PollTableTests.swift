// SPDX-License-Identifier: Apache-2.0

import XCTest

@testable import DispatchAIO

/// The table of one-shot polls, beside a model: for each descriptor the IDs in order.
final class PollTableTests: XCTestCase {
  func testRandomSteps() {
    Seeds.run(default: 200) { seed in
      var generator = SeededGenerator(seed: seed)
      var table = PollTable()
      var lists = [PollTable.List](repeating: .init(), count: 3)
      var model = [[PollTable.ID]](repeating: [], count: 3)
      var stale: [PollTable.ID] = []
      var most = 0
      for step in 0..<200 {
        let fd = Int.random(in: 0..<3, using: &generator)
        if Bool.random(using: &generator) {
          let poll = OneShotPoll(fd: Int32(fd), events: .readable) { _ in }
          model[fd].append(table.append(poll, to: &lists[fd]))
        } else {
          // One from anywhere in the list, or all.
          let one = generator.oneIn(3) ? nil : model[fd].randomElement(using: &generator)
          var taken: [PollTable.ID] = []
          table.take(from: &lists[fd]) { _, id in
            guard one == nil || id == one else { return false }
            taken.append(id)
            return true
          }
          XCTAssertEqual(taken, model[fd].filter { one == nil || $0 == one }, Seeds.replay(seed))
          model[fd].removeAll { taken.contains($0) }
          stale += taken
        }
        most = max(most, model.reduce(0) { $0 + $1.count })
        for fd in 0..<3 {
          XCTAssertEqual(lists[fd].isEmpty, model[fd].isEmpty, "step \(step)")
          XCTAssertEqual(table.events(of: lists[fd]) != 0, !model[fd].isEmpty, "step \(step)")
          for id in model[fd] { XCTAssertEqual(table[id]?.fd, Int32(fd), Seeds.replay(seed)) }
        }
        for id in stale { XCTAssertNil(table[id], "a stale ID hits; \(Seeds.replay(seed))") }
      }
      // Places are used again: no index is beyond the most polls that there were at once.
      for id in stale + model.flatMap({ $0 }) { XCTAssertLessThan(id.index, most) }
    }
  }
}
