// SPDX-License-Identifier: Apache-2.0

/// A closure to be stored in a collection, or returned by a generic function: a bare one would be
/// wrapped there, which allocates memory, each time that it goes in or comes out.
struct Block: Sendable {
  let run: @Sendable () -> Void

  init(_ run: @escaping @Sendable () -> Void) { self.run = run }
}
