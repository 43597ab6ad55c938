// swift-tools-version:6.2
import PackageDescription

// A package of its own, so that what the library is compared with (SwiftNIO, and the rest below)
// never gets into the build of somebody who uses the library.
let package = Package(
  name: "Benchmark",
  products: [.executable(name: "aio-bench", targets: ["AIOBench"])],
  traits: [
    // Minutes more to build.
    .trait(name: "FlyingFox", description: "FlyingFox's servers in aio-bench plugged"),
    .trait(name: "Hummingbird", description: "Hummingbird's servers in aio-bench plugged"),
  ],
  dependencies: [
    .package(
      name: "DispatchAIO", path: "../..",
      traits: [
        .trait(name: "FlyingFox", condition: .when(traits: ["FlyingFox"])),
        .trait(name: "Hummingbird", condition: .when(traits: ["Hummingbird"])),
      ]),
    .package(url: "https://github.com/hummingbird-project/hummingbird", from: "2.28.1"),
    .package(url: "https://github.com/swhitty/FlyingFox", from: "0.27.1"),
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
    .package(url: "https://github.com/apple/swift-nio", from: "2.101.2"),
    .package(url: "https://github.com/apple/swift-system", from: "1.8.1"),
    .package(url: "https://github.com/HdrHistogram/hdrhistogram-swift", from: "0.2.0"),
  ],
  targets: [
    .target(
      name: "CEngines", cSettings: [.unsafeFlags(["-O2"])],
      linkerSettings: [.linkedLibrary("aio")]),
    .target(
      name: "CServers", cSettings: [.unsafeFlags(["-O2"])],
      linkerSettings: [.linkedLibrary("aio")]),
    .executableTarget(
      name: "AIOBench",
      dependencies: [
        "CEngines", "CServers",
        .product(name: "DispatchAIO", package: "DispatchAIO"),
        .product(
          name: "DispatchAIOFlyingFox", package: "DispatchAIO",
          condition: .when(traits: ["FlyingFox"])),
        .product(name: "FlyingFox", package: "FlyingFox", condition: .when(traits: ["FlyingFox"])),
        .product(
          name: "FlyingSocks", package: "FlyingFox", condition: .when(traits: ["FlyingFox"])),
        .product(
          name: "DispatchAIOHummingbird", package: "DispatchAIO",
          condition: .when(traits: ["Hummingbird"])),
        .product(
          name: "DispatchAIONIO", package: "DispatchAIO",
          condition: .when(traits: ["Hummingbird"])),
        .product(
          name: "Hummingbird", package: "hummingbird", condition: .when(traits: ["Hummingbird"])),
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
        .product(name: "Histogram", package: "hdrhistogram-swift"),
        .product(name: "NIOCore", package: "swift-nio"),
        .product(name: "NIOPosix", package: "swift-nio"),
        .product(name: "_NIOFileSystem", package: "swift-nio"),
        .product(name: "SystemPackage", package: "swift-system"),
      ]),
  ],
  swiftLanguageModes: [.v6]
)
