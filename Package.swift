// swift-tools-version:6.2
import PackageDescription

/// What every Swift target here is built with: strict memory safety makes each unsafe
/// expression carry the word `unsafe`, so that a reader finds them all.
let strict: [SwiftSetting] = [
  .strictMemorySafety(),
  .enableUpcomingFeature("ExistentialAny"),
  .enableUpcomingFeature("InternalImportsByDefault"),
  .enableUpcomingFeature("MemberImportVisibility"),
]

let package = Package(
  name: "DispatchAIO",
  products: [
    .library(name: "DispatchAIO", targets: ["DispatchAIO"])
  ],
  dependencies: [
    .package(url: "https://github.com/apple/swift-system", from: "1.8.1")
  ],
  targets: [
    .systemLibrary(name: "CLibAIO", providers: [.apt(["libaio-dev"])]),
    .target(name: "CLinux"),
    .target(
      name: "DispatchAIO",
      dependencies: [
        "CLibAIO", "CLinux",
        .product(name: "SystemPackage", package: "swift-system"),
      ],
      // Lifetimes: what the borrowed spans of AIOBuffer are declared with.
      swiftSettings: strict + [.enableExperimentalFeature("Lifetimes")]),
    .testTarget(
      name: "DispatchAIOTests", dependencies: ["DispatchAIO", "dispatch-aio-probe"]),
    .executableTarget(
      name: "dispatch-aio-probe", dependencies: ["DispatchAIO"], path: "Tests/Probe"),
  ],
  swiftLanguageModes: [.v6]
)
