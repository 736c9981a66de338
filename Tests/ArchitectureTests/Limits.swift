/// The most that each rule lets through. A number here may only be lowered.
enum Limits {
  static let homemadeWords = 78
  static let longSentences = 23
  static let whoOrWhat = 86
  static let longFunctions = 13
  static let unlabelledParameters = 11
  static let undocumentedPublic = 62
  static let modulesNamedLikeAType = 0
  static let filesOfOneName = 0
  static let testClassesOfOneName = 0
  static let mainFilesWithoutHeadings = 1
  static let locksByHand = 89
  static let unsafeLines = [
    "ACPI": 6,
    "Console": 428,
    "ContiguousMemory": 19,
    "HostMachine": 67,
    "Kernel": 428,
    "KernelMemory": 20,
    "KernelSpace": 57,
    "Kmem": 290,
    "Magazines": 138,
    "MemoryPrimitives": 113,
    "PageTables": 36,
    "Paging": 445,
    "PhysicalMemory": 401,
    "Vmem": 424,
    "Workloads": 489,
    "strata": 50,
  ]
}
