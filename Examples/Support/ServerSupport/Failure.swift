// SPDX-License-Identifier: Apache-2.0

/// An error that ends a command with a sentence on standard error, and exit status 1.
public struct Failure: Error, CustomStringConvertible {
  public let description: String
  public init(_ description: String) { self.description = description }
}
