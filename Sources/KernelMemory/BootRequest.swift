// The machine that an instance is assembled on, as its boot describes it.

import KernelSpace
import MemoryPrimitives
import PageTables
import PhysicalMemory

/// Why the layers did not come up.
@frozen public enum AssemblyError: UInt8, Error, Sendable {
  /// The firmware's map holds no usable memory, no run for the frame records, or no memory besides.
  case tooSmall
  /// More occupied ranges than boot can keep apart.
  case tooManyRanges

  /// The reason, as the console prints it.
  public var description: StaticString {
    switch self {
    case .tooSmall: "the machine is too small: it has no space for the records of its own memory"
    case .tooManyRanges: "the loader left more modules than boot can keep apart"
    }
  }
}

/// The machine, and the memory that boot has described.
public struct BootRequest {
  /// The machine as the platform interface gives it.
  public var machine: Machine
  /// Zeroed memory of `MemorySystem.workspaceSize`, for the firmware's ranges and those carved out, aligned to a cache
  /// line. The instance keeps it.
  public var workspace: UnsafeMutableRawPointer
  /// The number of the firmware's ranges.
  public var firmwareRangeCount: Int
  /// The memory of the image, of modules and of the loader's data.
  public var occupied: UnsafeBufferPointer<OccupiedRange> = .init(start: nil, count: 0)
  /// The usable memory to leave out. A machine that is no PC has other rules.
  public var rules = MapRules()
  /// Memory that the instance does not own: reserved, but mapped in the direct map, readable and writable.
  public var carveOut = CarveOut()
  /// The image's segments; none where no kernel runs from this memory.
  public var image: KernelImage = .init(start: nil, count: 0)
  /// Levels of the page tables.
  public var levels: PagingLevels = .four
  /// The largest leaf of the direct map.
  public var largestLeaf: LargestLeaf = .mebibytes2
  /// The addresses of the regions.
  public var layout = AddressLayout()

  /// Describes a machine with this number of firmware ranges; the other fields have defaults.
  public init(machine: Machine, workspace: UnsafeMutableRawPointer, firmwareRangeCount: Int) {
    self.machine = machine
    self.workspace = workspace
    self.firmwareRangeCount = firmwareRangeCount
  }
}

/// Memory that is in use before boot begins.
public struct OccupiedRange: Sendable {
  /// The first byte.
  public var base: PhysicalAddress
  /// Its length.
  public var length: ByteCount
  /// The role that its frames get.
  public var role: FrameRole

  /// Describes `length` bytes from `base` on.
  public init(base: PhysicalAddress, length: ByteCount, role: FrameRole) {
    self.base = base
    self.length = length
    self.role = role
  }
}
