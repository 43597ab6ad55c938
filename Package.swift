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
  // Linux, and Darwin from the release on that has what the library uses of Swift 6.3.
  platforms: [.macOS("26.4")],
  products: [
    .library(name: "DispatchAIO", targets: ["DispatchAIO"]),
    // Each plug has what it is made of behind the trait of its name, and is empty without it.
    .library(name: "DispatchAIOFlyingFox", targets: ["DispatchAIOFlyingFox"]),
    .library(name: "DispatchAIOHummingbird", targets: ["DispatchAIOHummingbird"]),
    .library(name: "DispatchAIOMetrics", targets: ["DispatchAIOMetrics"]),
    .library(name: "DispatchAIONIO", targets: ["DispatchAIONIO"]),
    .library(name: "DispatchAIOServiceLifecycle", targets: ["DispatchAIOServiceLifecycle"]),
    .executable(name: "echo-to-disk", targets: ["EchoToDisk"]),
    .executable(name: "aio-nbd", targets: ["BlockServer"]),
    .executable(name: "aio-copy", targets: ["CopyFile"]),
    .executable(name: "aio-httpd", targets: ["FileServer"]),
    .executable(name: "hummingbird-files", targets: ["HummingbirdFiles"]),
  ],
  traits: [
    .trait(name: "FlyingFox", description: "DispatchAIOFlyingFox: FlyingFox on the ring"),
    .trait(
      name: "Hummingbird", description: "DispatchAIOHummingbird: files for Hummingbird 2",
      enabledTraits: ["NIO"]),
    .trait(
      name: "Metrics", description: "DispatchAIOMetrics: statistics and spans of a context"),
    .trait(name: "NIO", description: "DispatchAIONIO: files for SwiftNIO"),
    .trait(
      name: "ServiceLifecycle", description: "DispatchAIOServiceLifecycle: a context as a service"),
    .trait(
      name: "ThreadsOnly",
      description: "without libaio: every request is a system call on a thread, as on other systems"
    ),
  ],
  dependencies: [
    .package(url: "https://github.com/apple/swift-system", from: "1.8.1"),
    // The heap of the timers, and queues of the examples.
    .package(url: "https://github.com/apple/swift-collections", from: "1.6.0"),
    // What only the examples need, and HTTPTypes the plug of Hummingbird; a package that depends on
    // the library builds none of it.
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
    .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
    .package(url: "https://github.com/apple/swift-http-types", from: "1.8.0"),
    // Builds the documentation; a package that depends on the library does not fetch it.
    .package(url: "https://github.com/swiftlang/swift-docc-plugin", from: "1.5.0"),
    // What only the plugs need; nothing of it is fetched without their traits.
    .package(url: "https://github.com/apple/swift-distributed-tracing", from: "1.7.3"),
    .package(url: "https://github.com/apple/swift-metrics", from: "2.13.0"),
    .package(url: "https://github.com/apple/swift-nio", from: "2.101.2"),
    // The parts of an answer, of which hummingbird-files writes one itself.
    .package(url: "https://github.com/apple/swift-nio-extras", from: "1.35.2"),
    .package(url: "https://github.com/hummingbird-project/hummingbird", from: "2.28.1"),
    .package(url: "https://github.com/swhitty/FlyingFox", from: "0.27.1"),
    .package(url: "https://github.com/swift-server/swift-service-lifecycle", from: "2.13.0"),
  ],
  targets: [
    .systemLibrary(name: "CLibAIO", providers: [.apt(["libaio-dev"])]),
    .target(name: "CKernel"),
    .target(name: "PlatformLibc", swiftSettings: strict),
    .target(
      name: "DispatchAIO",
      dependencies: [
        "CKernel", "PlatformLibc", .target(name: "CLibAIO", condition: .when(platforms: [.linux])),
        .product(name: "HeapModule", package: "swift-collections"),
        .product(name: "SystemPackage", package: "swift-system"),
      ],
      // Lifetimes: what the borrowed spans of AIOBuffer are declared with.
      swiftSettings: strict + [.enableExperimentalFeature("Lifetimes")]),

    // Plugs
    // What servers of files know of HTTP.
    .target(name: "HTTPRules", swiftSettings: strict),
    .target(
      name: "DispatchAIONIO",
      dependencies: [
        "DispatchAIO",
        .product(name: "NIOCore", package: "swift-nio", condition: .when(traits: ["NIO"])),
        .product(name: "NIOPosix", package: "swift-nio", condition: .when(traits: ["NIO"])),
        .product(name: "_NIOFileSystem", package: "swift-nio", condition: .when(traits: ["NIO"])),
        .product(name: "SystemPackage", package: "swift-system"),
      ],
      swiftSettings: strict),
    .target(
      name: "DispatchAIOHummingbird",
      dependencies: [
        "DispatchAIO", "HTTPRules",
        .target(name: "DispatchAIONIO", condition: .when(traits: ["Hummingbird"])),
        .product(
          name: "HTTPTypes", package: "swift-http-types", condition: .when(traits: ["Hummingbird"])),
        .product(
          name: "Hummingbird", package: "hummingbird", condition: .when(traits: ["Hummingbird"])),
        .product(
          name: "NIOConcurrencyHelpers", package: "swift-nio",
          condition: .when(traits: ["Hummingbird"])),
        .product(name: "NIOCore", package: "swift-nio", condition: .when(traits: ["Hummingbird"])),
        .product(name: "SystemPackage", package: "swift-system"),
      ],
      swiftSettings: strict),
    .target(
      name: "DispatchAIOFlyingFox",
      dependencies: [
        "CKernel", "DispatchAIO", "HTTPRules",
        .product(name: "FlyingFox", package: "FlyingFox", condition: .when(traits: ["FlyingFox"])),
        .product(
          name: "FlyingSocks", package: "FlyingFox", condition: .when(traits: ["FlyingFox"])),
        .product(name: "SystemPackage", package: "swift-system"),
      ],
      swiftSettings: strict),
    .target(
      name: "DispatchAIOServiceLifecycle",
      dependencies: [
        "DispatchAIO",
        .product(
          name: "ServiceLifecycle", package: "swift-service-lifecycle",
          condition: .when(traits: ["ServiceLifecycle"])),
      ],
      swiftSettings: strict),
    .target(
      name: "DispatchAIOMetrics",
      dependencies: [
        "DispatchAIO",
        .product(
          name: "CoreMetrics", package: "swift-metrics", condition: .when(traits: ["Metrics"])),
        .product(name: "SystemPackage", package: "swift-system"),
        .product(
          name: "Tracing", package: "swift-distributed-tracing",
          condition: .when(traits: ["Metrics"])),
      ],
      swiftSettings: strict),

    // Examples
    .target(name: "CSockets", path: "Examples/Support/CSockets"),
    .target(
      name: "ServerSupport",
      dependencies: [
        "CSockets", "DispatchAIO",
        .target(name: "DispatchAIOMetrics", condition: .when(traits: ["Metrics"])),
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
        .product(
          name: "CoreMetrics", package: "swift-metrics", condition: .when(traits: ["Metrics"])),
        .product(name: "Logging", package: "swift-log"),
        .product(
          name: "ServiceLifecycle", package: "swift-service-lifecycle",
          condition: .when(traits: ["ServiceLifecycle"])),
        .product(name: "SystemPackage", package: "swift-system"),
      ],
      path: "Examples/Support/ServerSupport"),
    .systemLibrary(
      name: "CXXHash", path: "Examples/EchoToDisk/CXXHash", providers: [.apt(["libxxhash-dev"])]),
    .target(name: "CJournal", path: "Examples/EchoToDisk/CJournal"),
    .executableTarget(
      name: "EchoToDisk",
      dependencies: [
        "CJournal", "CXXHash", "DispatchAIO", "ServerSupport",
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
        .product(name: "Logging", package: "swift-log"),
        .product(name: "SystemPackage", package: "swift-system"),
      ],
      path: "Examples/EchoToDisk/Sources"),
    .target(name: "CStorage", path: "Examples/BlockServer/CStorage"),
    .executableTarget(
      name: "BlockServer",
      dependencies: [
        "CStorage", "DispatchAIO", "ServerSupport",
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
        .product(name: "DequeModule", package: "swift-collections"),
        .product(name: "Logging", package: "swift-log"),
        .product(name: "SystemPackage", package: "swift-system"),
      ],
      path: "Examples/BlockServer/Sources"),
    .target(name: "CFiles", path: "Examples/CopyFile/CFiles"),
    .executableTarget(
      name: "CopyFile",
      dependencies: [
        "CFiles", "DispatchAIO", "ServerSupport",
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
        .product(name: "SystemPackage", package: "swift-system"),
      ],
      path: "Examples/CopyFile/Sources"),
    .target(name: "CServedFiles", path: "Examples/FileServer/CServedFiles"),
    .executableTarget(
      name: "FileServer",
      dependencies: [
        "CServedFiles", "DispatchAIO", "HTTPRules", "ServerSupport",
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
        .product(name: "HTTPTypes", package: "swift-http-types"),
        .product(name: "Logging", package: "swift-log"),
        .product(name: "SystemPackage", package: "swift-system"),
      ],
      path: "Examples/FileServer/Sources"),
    // Empty without its trait, but for a sentence.
    .executableTarget(
      name: "HummingbirdFiles",
      dependencies: [
        "DispatchAIOHummingbird", "ServerSupport",
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
        .product(name: "HTTPTypes", package: "swift-http-types"),
        .product(
          name: "Hummingbird", package: "hummingbird", condition: .when(traits: ["Hummingbird"])),
        .product(name: "Logging", package: "swift-log"),
        .product(name: "NIOCore", package: "swift-nio", condition: .when(traits: ["Hummingbird"])),
        .product(
          name: "NIOHTTPTypes", package: "swift-nio-extras",
          condition: .when(traits: ["Hummingbird"])),
        .product(
          name: "ServiceLifecycle", package: "swift-service-lifecycle",
          condition: .when(traits: ["Hummingbird"])),
      ],
      path: "Examples/HummingbirdFiles", exclude: ["README.md"]),
    .executableTarget(
      name: "first-write", dependencies: ["DispatchAIO"], path: "Examples/FirstWrite",
      exclude: ["README.md"]),
    .executableTarget(
      name: "one-queue",
      dependencies: ["DispatchAIO", .product(name: "SystemPackage", package: "swift-system")],
      path: "Examples/OneQueue", exclude: ["README.md"]),

    // Tests
    .testTarget(
      name: "DispatchAIOTests",
      dependencies: [
        "BlockServer", "CopyFile", "CProbe", "DispatchAIO", "dispatch-aio-probe", "EchoToDisk",
        "FileServer", "first-write", "HTTPRules", "one-queue", "ring-check", "ServerSupport",
        .product(name: "Logging", package: "swift-log"),
      ]),
    .testTarget(
      name: "DispatchAIOFlyingFoxTests",
      dependencies: [
        "DispatchAIOFlyingFox",
        .product(name: "FlyingFox", package: "FlyingFox", condition: .when(traits: ["FlyingFox"])),
        .product(
          name: "FlyingSocks", package: "FlyingFox", condition: .when(traits: ["FlyingFox"])),
      ]),
    .testTarget(
      name: "DispatchAIOHummingbirdTests",
      dependencies: [
        "DispatchAIOHummingbird", "HummingbirdFiles",
        .product(
          name: "Hummingbird", package: "hummingbird", condition: .when(traits: ["Hummingbird"])),
        .product(name: "Logging", package: "swift-log"),
        .product(name: "NIOCore", package: "swift-nio", condition: .when(traits: ["Hummingbird"])),
        .product(name: "SystemPackage", package: "swift-system"),
      ]),
    .testTarget(
      name: "DispatchAIOMetricsTests",
      dependencies: [
        "DispatchAIOMetrics", "FileServer", "ServerSupport",
        .product(
          name: "CoreMetrics", package: "swift-metrics", condition: .when(traits: ["Metrics"])),
        .product(
          name: "InMemoryTracing", package: "swift-distributed-tracing",
          condition: .when(traits: ["Metrics"])),
        .product(name: "Logging", package: "swift-log"),
        .product(
          name: "MetricsTestKit", package: "swift-metrics", condition: .when(traits: ["Metrics"])),
        .product(name: "SystemPackage", package: "swift-system"),
      ]),
    .testTarget(
      name: "DispatchAIONIOTests",
      dependencies: [
        "DispatchAIONIO",
        .product(name: "NIOCore", package: "swift-nio", condition: .when(traits: ["NIO"])),
        .product(name: "NIOPosix", package: "swift-nio", condition: .when(traits: ["NIO"])),
        .product(name: "_NIOFileSystem", package: "swift-nio", condition: .when(traits: ["NIO"])),
        .product(name: "SystemPackage", package: "swift-system"),
      ]),
    .testTarget(
      name: "DispatchAIOServiceLifecycleTests",
      dependencies: [
        "DispatchAIOServiceLifecycle", "FileServer", "ServerSupport",
        .product(name: "Logging", package: "swift-log"),
        .product(
          name: "ServiceLifecycle", package: "swift-service-lifecycle",
          condition: .when(traits: ["ServiceLifecycle"])),
        .product(name: "SystemPackage", package: "swift-system"),
      ]),
    .target(name: "CFaultFS", path: "Tests/CFaultFS"),
    .target(name: "CProbe", path: "Tests/CProbe"),
    .executableTarget(name: "ring-check", dependencies: ["CKernel"], path: "Tests/RingCheck"),
    .executableTarget(
      name: "dispatch-aio-probe", dependencies: ["CFaultFS", "CProbe", "DispatchAIO"],
      path: "Tests/Probe"),
  ],
  swiftLanguageModes: [.v6]
)
