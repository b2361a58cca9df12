# A small stand-in for the parts of nixpkgs' lib that the module and the package use, since no nixpkgs
# can be had where the tests run. With NIXPKGS_LIB the same cases run on the real one.
let
  inherit (builtins)
    all
    any
    attrNames
    attrValues
    concatLists
    concatMap
    concatStringsSep
    elem
    elemAt
    filter
    foldl'
    head
    isAttrs
    isBool
    isFunction
    isList
    isPath
    isString
    length
    listToAttrs
    map
    match
    stringLength
    tail
    ;

  # ---- what a definition can be wrapped in

  mkIf = condition: content: {
    _type = "if";
    inherit condition content;
  };
  mkMerge = contents: {
    _type = "merge";
    inherit contents;
  };
  mkOverride = priority: content: {
    _type = "override";
    inherit priority content;
  };

  # The definitions that a module makes of the option at a path. A condition is looked at only when
  # the option itself is wanted: it may depend on other options.
  definitions =
    path: config:
    if config._type or null == "if" then
      map (d: d // { holds = config.condition && d.holds; }) (definitions path config.content)
    else if config._type or null == "merge" then
      concatMap (definitions path) config.contents
    else if config._type or null == "override" then
      map (d: d // { inherit (config) priority; }) (definitions path config.content)
    else if path == [ ] then
      [
        {
          holds = true;
          priority = 100;
          value = config;
        }
      ]
    else if config ? ${head path} then
      definitions (tail path) config.${head path}
    else
      [ ];

  # Those that count: the conditions hold, and none has a higher priority.
  strongest =
    defs:
    let
      held = filter (d: d.holds) defs;
      least = foldl' (least: d: if d.priority < least then d.priority else least) 9999 held;
    in
    filter (d: d.priority == least) held;

  # ---- types: what a value must be, and how several are merged

  only = name: values: if length values == 1 then head values else throw "${name} is set twice";
  type = description: check: {
    inherit description check;
    merge =
      name: values: if all (v: v == head values) values then head values else throw "${name} conflicts";
  };
  # A set, each of whose values is of the type that `typeOf` says.
  mergeSets =
    typeOf: name: values:
    listToAttrs (
      concatMap (
        key:
        let
          defs = concatMap (definitions [ key ]) values;
        in
        lib.optional (any (d: d.holds) defs) {
          name = key;
          value = merge "${name}.${key}" (typeOf key) defs;
        }
      ) (concatMap attrNames values)
    );
  anything = {
    description = "anything";
    check = _: true;
    merge =
      name: values:
      if all (v: isAttrs v && v.type or null != "derivation") values then
        mergeSets (_: anything) name values
      else
        (type "" null).merge name values;
  };
  types = {
    str = type "string" isString;
    bool = type "boolean" isBool;
    package = type "package" (v: isAttrs v && v.type or null == "derivation") // {
      merge = only;
    };
    externalPath = type "absolute path not in the Nix store" (
      v: isString v && match "/.*" v != null && match "${builtins.storeDir}/.*" v == null
    );
    ints.unsigned = type "unsigned integer" (v: builtins.isInt v && v >= 0);
    strMatching =
      pattern: type "string that matches ${pattern}" (v: isString v && match pattern v != null);
    either = a: b: type "${a.description} or ${b.description}" (v: a.check v || b.check v);
    nullOr =
      inner:
      inner
      // {
        description = "null or ${inner.description}";
        check = v: v == null || inner.check v;
      };
    listOf = inner: {
      description = "list of ${inner.description}";
      check = isList;
      # An item may be conditional, as a definition may.
      merge =
        name: values:
        concatMap (
          item:
          let
            held = filter (d: d.holds) (definitions [ ] item);
          in
          map (d: merge name inner [ d ]) held
        ) (concatLists values);
    };
    attrsOf = inner: {
      description = "attribute set of ${inner.description}";
      check = isAttrs;
      merge = mergeSets (_: inner);
    };
    submodule =
      { options, ... }:
      {
        description = "submodule";
        check = isAttrs;
        merge =
          name: values:
          builtins.mapAttrs (_: option: option.default) options
          // mergeSets (key: options.${key}.type or anything) name values;
      };
    inherit anything;
  };

  merge =
    name: type: defs:
    let
      values = map (d: d.value) (strongest defs);
      bad = filter (v: !type.check v) values;
    in
    if values == [ ] then
      throw "The option `${name}' is used but not defined."
    else if bad != [ ] then
      throw "A definition for option `${name}' is not of type `${type.description}'."
    else
      type.merge name values;

  # ---- modules

  isOption = v: v._type or null == "option";

  evalModules =
    {
      modules,
      specialArgs ? { },
    }:
    let
      args = specialArgs // {
        inherit config lib options;
      };
      load =
        module:
        let
          isFile = isPath module || isString module;
          opened = if isFile then import module else module;
          body = if isFunction opened then opened args else opened;
          special = {
            file = body._file or (if isFile then toString module else "<unknown-file>");
            imports = body.imports or [ ];
          };
          whole =
            if body ? config || body ? options then
              body // special
            else
              special
              // {
                config = removeAttrs body [
                  "_class"
                  "_file"
                  "imports"
                ];
              };
        in
        [ whole ] ++ concatMap load whole.imports;
      # The real lib takes the last module first.
      loaded = foldl' (before: module: [ module ] ++ before) [ ] (concatMap load modules);

      recurse =
        a: b:
        a
        // builtins.mapAttrs (
          name: v: if a ? ${name} && isAttrs v && !isOption v then recurse a.${name} v else v
        ) b;
      declared = foldl' recurse { } (map (m: m.options or { }) loaded);

      # An option with its definitions and its value.
      evaluated =
        path: option:
        let
          name = concatStringsSep "." path;
          default = {
            holds = option ? default;
            priority = 1500;
            value = option.default;
          };
          defs = concatMap (
            m: map (d: d // { inherit (m) file; }) (definitions path (m.config or { }))
          ) loaded;
        in
        option
        // {
          definitionsWithLocations = map (d: { inherit (d) file value; }) (strongest defs);
          value = (option.apply or (v: v)) (merge name option.type (defs ++ [ default ]));
        };
      walk =
        f: path: node:
        if isOption node then f path node else builtins.mapAttrs (name: walk f (path ++ [ name ])) node;
      options = walk evaluated [ ] declared;
      config = walk (_: option: option.value) [ ] options;

      # Every definition has to be of an option that exists.
      unknown =
        path: node: content:
        if content._type or null == "if" || content._type or null == "override" then
          unknown path node content.content
        else if content._type or null == "merge" then
          concatMap (unknown path node) content.contents
        else if isOption node then
          [ ]
        else
          concatMap (
            name:
            if node ? ${name} then
              unknown (path ++ [ name ]) node.${name} content.${name}
            else
              [ (concatStringsSep "." (path ++ [ name ])) ]
          ) (attrNames content);
      strays = concatMap (m: unknown [ ] declared (m.config or { })) loaded;
    in
    if strays == [ ] then
      { inherit config options; }
    else
      throw "The option `${head strays}' does not exist.";

  # ---- the rest

  bare = builtins.unsafeDiscardStringContext;

  filterAttrs =
    keep: attrs: removeAttrs attrs (filter (name: !keep name attrs.${name}) (attrNames attrs));
  setAttrByPath =
    path: value: if path == [ ] then value else { ${head path} = setAttrByPath (tail path) value; };
  mapAttrsToList = f: attrs: map (name: f name attrs.${name}) (attrNames attrs);

  lib = {
    inherit
      all
      any
      attrNames
      attrValues
      concatLists
      concatMap
      concatStringsSep
      elem
      elemAt
      evalModules
      filter
      filterAttrs
      head
      isAttrs
      isBool
      isFunction
      isString
      mapAttrsToList
      mkIf
      mkMerge
      mkOverride
      setAttrByPath
      stringLength
      tail
      types
      ;
    inherit (builtins) functionArgs mapAttrs replaceStrings;

    mkOption = option: option // { _type = "option"; };
    mkEnableOption =
      name:
      lib.mkOption {
        type = types.bool;
        default = false;
        description = "Whether to enable ${name}.";
      };
    mkDefault = mkOverride 1000;
    mkForce = mkOverride 50;
    literalExpression = text: text;

    boolToString = b: if b then "true" else "false";
    genAttrs =
      names: f:
      listToAttrs (
        map (name: {
          inherit name;
          value = f name;
        }) names
      );
    getExe = package: "${package}/bin/${package.meta.mainProgram}";
    escapeShellArg = text: "'${builtins.replaceStrings [ "'" ] [ "'\\''" ] text}'";
    escapeShellArgs = lib.concatMapStringsSep " " lib.escapeShellArg;
    hasPrefix = prefix: text: builtins.substring 0 (stringLength prefix) text == prefix;
    hasSuffix =
      suffix: text:
      let
        cut = stringLength text - stringLength suffix;
      in
      cut >= 0 && builtins.substring cut (-1) text == suffix;
    hasInfix = infix: text: builtins.replaceStrings [ (bare infix) ] [ "" ] (bare text) != bare text;
    concatMapStringsSep =
      separator: f: values:
      concatStringsSep separator (map f values);
    importTOML = file: builtins.fromTOML (builtins.readFile file);
    makeBinPath = packages: concatStringsSep ":" (map (package: "${package}/bin") packages);
    removePrefix =
      prefix: text:
      let
        cut = stringLength prefix;
      in
      if builtins.substring 0 cut text == prefix then builtins.substring cut (-1) text else text;
    assertMsg = holds: message: if holds then true else throw message;
    optional = condition: v: if condition then [ v ] else [ ];
    optionalAttrs = condition: v: if condition then v else { };
    optionalString = condition: text: if condition then text else "";
    optionals = condition: v: if condition then v else [ ];
    licenses = {
      asl20 = "Apache-2.0";
      mit = "MIT";
    };
    platforms.linux = [
      "x86_64-linux"
      "aarch64-linux"
    ];
    # Files are only listed; tests/nix/run.sh copies them.
    fileset = {
      unions = files: files;
      toSource = { root, fileset }: { inherit root fileset; };
    };
  };
in
lib
