// swift-tools-version: 6.2
import PackageDescription

// A package that depends on Strata as a user's does: it imports the products, and fetches nothing else.

let package = Package(
  name: "client",
  dependencies: [.package(name: "strata", path: "../..", traits: [])],
  targets: [
    .executableTarget(
      name: "Client",
      dependencies: [
        .product(name: "KernelMemory", package: "strata"), .product(name: "HostMachine", package: "strata"),
      ],
      swiftSettings: [.enableUpcomingFeature("MemberImportVisibility"), .treatAllWarnings(as: .error)])
  ])
