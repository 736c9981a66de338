/// The most that each rule lets through. A number here may only be lowered.
enum Limits {
  static let homemadeWords = 0
  static let longSentences = 0
  static let whoOrWhat = 0
  static let longFunctions = 0
  static let unlabelledParameters = 0
  static let undocumentedPublic = 0
  static let modulesNamedLikeAType = 0
  static let filesOfOneName = 0
  static let testClassesOfOneName = 0
  static let mainFilesWithoutHeadings = 0
  static let locksByHand = 0
  static let unsafeLines = [
    "ACPI": 6,
    "BlockDevices": 30,
    "Console": 321,
    "ContiguousMemory": 23,
    "HostMachine": 60,
    "Kernel": 347,
    "KernelMemory": 22,
    "KernelSpace": 59,
    "Kmem": 229,
    "Magazines": 109,
    "MemoryPrimitives": 116,
    "PageTables": 74,
    "Paging": 109,
    "PhysicalMemory": 316,
    "Vmem": 148,
    "Workloads": 548,
    "Zsmalloc": 211,
    "strata": 58,
  ]
}
