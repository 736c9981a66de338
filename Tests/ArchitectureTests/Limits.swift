/// The most that each rule lets through. A number here may only be lowered.
enum Limits {
  static let homemadeWords = 1948
  static let longSentences = 121
  static let whoOrWhat = 639
  static let longFunctions = 26
  static let unlabelledParameters = 49
  static let undocumentedPublic = 573
  static let modulesNamedLikeAType = 10
  static let filesOfOneName = 37
  static let testClassesOfOneName = 19
  static let mainFilesWithoutHeadings = 11
  static let locksByHand = 194
  static let unsafeLines = [
    "ACPI": 6,
    "Console": 428,
    "ContiguousMemory": 37,
    "HostMachine": 69,
    "Kernel": 428,
    "KernelMemory": 20,
    "KernelSpace": 58,
    "Kmem": 288,
    "Magazines": 137,
    "MemoryPrimitives": 104,
    "PageTables": 36,
    "Paging": 457,
    "PhysicalMemory": 394,
    "Vmem": 429,
    "Workloads": 493,
    "strata": 53,
  ]
}
