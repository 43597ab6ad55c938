// SPDX-License-Identifier: Apache-2.0

//
// What the plugs, the other library products of this package, need beneath the public face.

package import SystemPackage

extension AIOFile {
  /// Calls `body` with the file's descriptor, which stays open until it returns.
  ///
  /// - Throws: ``AIOError`` with the code ``AIOError/Code/fileClosed``, or the error of `body`.
  package func withDescriptor<Result>(
    _ operation: AIOError.Operation, _ body: (FileDescriptor) throws -> Result
  ) throws -> Result {
    guard file.retain() else {
      throw AIOError.fileClosed(
        AIOError.Subject(operation: operation, path: path, descriptor: file.descriptor))
    }
    defer { file.release() }
    return try body(fileDescriptor)
  }
}

extension AIOError {
  /// A refusal by a plug.
  package init(
    _ code: Code, _ operation: Operation, file: AIOFile, offset: Int64? = nil, length: Int? = nil,
    _ sentence: String
  ) {
    self.init(
      code,
      Subject(
        operation: operation, path: file.path, descriptor: file.file.descriptor, offset: offset,
        length: length),
      .text(sentence))
  }
}
