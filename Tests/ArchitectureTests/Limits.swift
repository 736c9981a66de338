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
    "Console": 387,
    "ContiguousMemory": 19,
    "HostMachine": 60,
    "Kernel": 345,
    "KernelMemory": 20,
    "KernelSpace": 57,
    "Kmem": 277,
    "Magazines": 109,
    "MemoryPrimitives": 108,
    "PageTables": 36,
    "Paging": 108,
    "PhysicalMemory": 295,
    "Vmem": 107,
    "Workloads": 510,
    "strata": 47,
  ]
}
