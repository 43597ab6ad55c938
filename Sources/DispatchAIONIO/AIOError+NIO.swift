// SPDX-License-Identifier: Apache-2.0
//
// An error of the library as the error that NIO's own calls throw in its place.

#if NIO
internal import DispatchAIO
internal import NIOCore
internal import _NIOFileSystem

extension AIOError {
  /// What `NonBlockingFileIO` fails with.
  var forFutures: any Error {
    if code == .cancelled { return CancellationError() }
    guard let errno else { return self }
    return IOError(errnoCode: errno.rawValue, reason: "\(self)")
  }

  /// What NIO's file system throws: the sentence is the library's, and the cause is this error.
  func forFileSystem(
    function: String = #function, file: String = #fileID, line: Int = #line
  ) -> any Error {
    if code == .cancelled { return CancellationError() }
    return FileSystemError(
      code: fileSystemCode, message: "\(self)", cause: self,
      location: .init(function: function, file: file, line: line))
  }

  private var fileSystemCode: FileSystemError.Code {
    switch code {
    case .fileClosed, .contextClosed: .closed
    case .notFound: .notFound
    case .exists: .fileAlreadyExists
    case .permissionDenied: .permissionDenied
    case .noSpace, .fileSizeLimit, .descriptorLimit, .contextLimit, .full: .resourceExhausted
    case .invalidOffset, .tooLarge, .tooManyBuffers, .misaligned, .wrongAccessMode:
      .invalidArgument
    case .unsupportedFile, .directUnsupported, .notSupported: .unsupported
    case .unavailable: .unavailable
    case .device: .io
    default: .unknown
    }
  }
}

/// Runs a call of the library, whose errors become those of NIO's file system.
func mappingErrors<Value>(
  function: String = #function, file: String = #fileID, line: Int = #line,
  isolation: isolated (any Actor)? = #isolation,
  _ body: () async throws(AIOError) -> Value
) async throws -> Value {
  do throws(AIOError) {
    return try await body()
  } catch {
    throw error.forFileSystem(function: function, file: file, line: line)
  }
}
#endif
