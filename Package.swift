// swift-tools-version: 6.2
import PackageDescription

// Layers as in Sources/README.md: a target names the layers below that it imports, and nothing more.
// The kernel is built from the same package for a bare machine (`make kernel`), which asks for its
// target by STRATA_KERNEL; a host build never sees it.

let bare = Context.environment["STRATA_KERNEL"] != nil

let core: [SwiftSetting] = [
  .enableExperimentalFeature("RawLayout"),
  .enableExperimentalFeature("BuiltinModule"),
]

var package = Package(
  name: "strata",
  products: [
    .library(name: "KernelMemory", targets: ["KernelMemory"])
  ],
  traits: [
    .trait(
      name: "CommandLineTool",
      description:
        "The tool strata. A package that uses the library alone switches this off and fetches nothing."),
    .default(enabledTraits: ["CommandLineTool"]),
  ],
  targets: [
    .target(name: "CPlatform"),
    .target(name: "MemoryPrimitives", dependencies: ["CPlatform"], swiftSettings: core),
    .target(name: "Magazines", dependencies: ["CPlatform", "MemoryPrimitives"]),
    .target(name: "ACPI", dependencies: ["MemoryPrimitives"]),
    .target(name: "PhysicalMemory", dependencies: ["MemoryPrimitives"]),
    .target(name: "PageTables", dependencies: ["CPlatform", "MemoryPrimitives"]),
    .target(name: "Vmem", dependencies: ["MemoryPrimitives"]),
    .target(
      name: "KernelSpace",
      dependencies: ["CPlatform", "MemoryPrimitives", "PhysicalMemory", "PageTables", "Vmem"]),
    .target(
      name: "Kmem",
      dependencies: ["CPlatform", "MemoryPrimitives", "Magazines", "PhysicalMemory", "PageTables"]),
    .target(
      name: "Zsmalloc",
      dependencies: ["CPlatform", "MemoryPrimitives", "PhysicalMemory", "PageTables", "KernelSpace"]),
    .target(name: "BlockDevices", dependencies: ["CPlatform", "MemoryPrimitives"]),
    .target(
      name: "Paging",
      dependencies: [
        "CPlatform", "MemoryPrimitives", "PhysicalMemory", "PageTables", "KernelSpace", "Kmem",
        "BlockDevices",
      ]),
    .target(
      name: "ContiguousMemory",
      dependencies: [
        "MemoryPrimitives", "PhysicalMemory", "PageTables", "KernelSpace", "Kmem", "Zsmalloc", "Paging",
      ]),
    .target(
      name: "KernelMemory",
      dependencies: [
        "CPlatform", "MemoryPrimitives", "PhysicalMemory", "PageTables", "Vmem", "KernelSpace", "Kmem",
        "Zsmalloc", "BlockDevices", "Paging", "ContiguousMemory",
      ]),
    .target(
      name: "Workloads",
      dependencies: [
        "CPlatform", "MemoryPrimitives", "PhysicalMemory", "PageTables", "Vmem", "KernelSpace", "Kmem",
        "Zsmalloc", "BlockDevices", "Paging", "ContiguousMemory", "KernelMemory",
      ]),
    .target(
      name: "Console",
      dependencies: [
        "CPlatform", "MemoryPrimitives", "Magazines", "PhysicalMemory", "PageTables", "Vmem", "KernelSpace",
        "Kmem", "Zsmalloc", "Paging", "ContiguousMemory", "KernelMemory", "Workloads",
      ]),
  ]
)

if bare {
  package.targets.append(
    .target(
      name: "Kernel",
      dependencies: [
        "CPlatform", "MemoryPrimitives", "ACPI", "PhysicalMemory", "PageTables", "KernelSpace", "Kmem",
        "BlockDevices", "Paging", "KernelMemory", "Workloads", "Console",
      ]))
} else {
  package.products += [
    .library(name: "HostMachine", targets: ["HostMachine"]),
    .executable(name: "strata", targets: ["strata"]),
  ]
  package.dependencies.append(
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.5.0"))
  package.targets += [
    .target(
      name: "HostMachine",
      dependencies: [
        "CPlatform", "MemoryPrimitives", "PhysicalMemory", "PageTables", "BlockDevices", "KernelMemory",
      ]),
    .executableTarget(
      name: "strata",
      dependencies: [
        "CPlatform", "MemoryPrimitives", "PhysicalMemory", "Vmem", "Kmem", "Zsmalloc", "BlockDevices",
        "Paging",
        "ContiguousMemory", "KernelMemory", "Workloads", "HostMachine",
        .product(
          name: "ArgumentParser", package: "swift-argument-parser",
          condition: .when(traits: ["CommandLineTool"])),
      ]),
  ]

  let layers = [
    "CPlatform", "MemoryPrimitives", "Magazines", "ACPI", "PhysicalMemory", "PageTables", "Vmem",
    "KernelSpace", "Kmem", "Zsmalloc", "BlockDevices", "Paging", "ContiguousMemory", "KernelMemory",
    "Workloads", "Console",
  ]
  package.targets.append(
    .target(
      name: "TestSupport", dependencies: (layers + ["HostMachine"]).map { .byName(name: $0) },
      path: "Tests/TestSupport"))
  for module in layers.dropFirst() {
    package.targets.append(
      .testTarget(
        name: module + "Tests",
        dependencies: (layers + ["HostMachine", "TestSupport"]).map { .byName(name: $0) }))
  }
  package.targets += [
    .testTarget(name: "ArchitectureTests"),
    .testTarget(
      name: "BootTests",
      dependencies: ["MemoryPrimitives", "KernelMemory", "Workloads", "HostMachine", "TestSupport"]),
    .testTarget(name: "StrataTests", dependencies: ["strata", "Workloads", "HostMachine", "TestSupport"]),
  ]
}

// A warning is an error, in every target.
for target in package.targets {
  target.swiftSettings = (target.swiftSettings ?? []) + [.treatAllWarnings(as: .error)]
}
