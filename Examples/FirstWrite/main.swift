import Dispatch
import DispatchAIO
import Foundation

let context = try AIOContext(queueDepth: 64)
let file = try AIOFile.open("first-write.data", .readWrite, options: .create)
let block = AIOBuffer(count: 4096)
try context.write(file, at: 0, from: block) { written in
  print("written:", written)  // on context.queue
  do {
    try context.fdatasync(file) { durable in
      print("durable:", durable)
      context.close { exit(0) }
    }
  } catch { fatalError("\(error)") }
}
dispatchMain()
