/// The most that each rule lets through. A number here may only be lowered.
enum Limits {
  static let homemadeWords = 529
  static let longSentences = 116
  static let whoOrWhat = 638
  static let longFunctions = 27
  static let unlabelledParameters = 49
  static let undocumentedPublic = 568
  static let modulesNamedLikeAType = 0
  static let filesOfOneName = 36
  static let testClassesOfOneName = 19
  static let mainFilesWithoutHeadings = 11
  static let locksByHand = 184
  static let unsafeLines = [
    "ACPI": 6,
    "Console": 428,
    "ContiguousMemory": 37,
    "HostMachine": 69,
    "Kernel": 428,
    "KernelMemory": 20,
    "KernelSpace": 58,
    "Kmem": 293,
    "Magazines": 138,
    "MemoryPrimitives": 114,
    "PageTables": 36,
    "Paging": 457,
    "PhysicalMemory": 401,
    "Vmem": 429,
    "Workloads": 493,
    "strata": 53,
  ]
}
