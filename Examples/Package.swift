// swift-tools-version: 6.2
import PackageDescription

// A program for the host, and a kernel for a bare machine, which Scripts/examples asks for by EXAMPLE_KERNEL: a
// host build never sees it.

let package = Package(
  name: "examples",
  dependencies: [.package(name: "strata", path: "..", traits: [])],
  targets: [
    .executableTarget(
      name: "HostProgram",
      dependencies: [
        .product(name: "KernelMemory", package: "strata"), .product(name: "HostMachine", package: "strata"),
      ])
  ])

if Context.environment["EXAMPLE_KERNEL"] != nil {
  package.targets.append(
    .target(name: "SmallKernel", dependencies: [.product(name: "KernelMemory", package: "strata")]))
}

for target in package.targets {
  target.swiftSettings = [.treatAllWarnings(as: .error)]
}
