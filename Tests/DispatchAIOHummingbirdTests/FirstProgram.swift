// SPDX-License-Identifier: Apache-2.0

#if Hummingbird
import DispatchAIOHummingbird
import Hummingbird

func serve(_ directory: String) async throws {
  let files = try AIOFileProvider(directory, context: AIOContext())
  let router = Router()
  router.middlewares.add(AIOFileMiddleware(files, searchForIndexHtml: true))
  router.put("**") { request, _ -> HTTPResponse.Status in
    try await files.store(request).replaced ? .noContent : .created
  }
  try await Application(router: router).runService()
}
#endif
