// The use of a frame: every frame of memory has exactly one role, and the counts by role add up to the frames that the
// memory map has.

/// The one use of a frame.
@frozen public enum FrameRole: UInt8, Sendable {
  /// In the buddy queues.
  case free
  /// Wired for the kernel, without a closer name.
  case wired
  /// A slab of small objects.
  case slab
  /// Pages of large kmem requests.
  case kmem
  /// A table of the page tables.
  case pageTable
  /// A kernel stack.
  case stack
  /// Boundary tags of arenas.
  case tags
  /// Frame records and the other tables of this layer.
  case records
  /// The kernel's image.
  case image
  /// A file that the loader put into memory.
  case bootModule
  /// Allocated from early memory, and never freed.
  case boot
  /// The table of statistics and the failure log.
  case statistics
  /// Allocated as part of one run.
  case contiguous
  /// Pageable memory: its contents can be moved to another frame.
  case pageable
  /// A page of a store of objects that can be moved: its zspage's descriptor names it.
  case zspage
  /// Tables of paging: slots of objects and of swap.
  case paging
  /// Loaned to a second instance, a test or a driver.
  case loaned
  /// No memory, or memory that the map leaves out.
  case absent

  /// The number of roles.
  @inlinable package static var count: Int { 18 }

  /// Whether the contents of the frame can be moved to another frame; a pageable page only while it is not wired.
  @inlinable package var isMovable: Bool { self == .pageable || self == .zspage }

  /// Whether frames of this role are never freed.
  @inlinable package var isPermanent: Bool {
    self == .records || self == .image || self == .boot || self == .absent
  }

  /// The role as the console prints it.
  public var description: StaticString {
    switch self {
    case .free: "free"
    case .wired: "wired"
    case .slab: "slab"
    case .kmem: "kmem pages"
    case .pageTable: "page table"
    case .stack: "stack"
    case .tags: "tags"
    case .records: "frame records"
    case .image: "image"
    case .bootModule: "boot module"
    case .boot: "boot"
    case .statistics: "statistics"
    case .contiguous: "contiguous"
    case .pageable: "pageable"
    case .zspage: "zspage"
    case .paging: "paging tables"
    case .loaned: "loaned"
    case .absent: "no memory"
    }
  }

  /// The name of its row of statistics.
  var statisticName: StaticString {
    switch self {
    case .free: "vm.frames.free"
    case .wired: "vm.frames.wired"
    case .slab: "vm.frames.slab"
    case .kmem: "vm.frames.kmem"
    case .pageTable: "vm.frames.page_table"
    case .stack: "vm.frames.stack"
    case .tags: "vm.frames.tags"
    case .records: "vm.frames.records"
    case .image: "vm.frames.image"
    case .bootModule: "vm.frames.boot_module"
    case .boot: "vm.frames.boot"
    case .statistics: "vm.frames.statistics"
    case .contiguous: "vm.frames.contiguous"
    case .pageable: "vm.frames.pageable"
    case .zspage: "vm.frames.zspage"
    case .paging: "vm.frames.paging"
    case .loaned: "vm.frames.loaned"
    case .absent: "vm.frames.absent"
    }
  }
}
